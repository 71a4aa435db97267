//! Recording a recipe while a layer is applied.

use super::{BYTES, CONTENT, END};
use crate::tarball::Segment;
use std::io::{self, BufWriter, Read, Write};

/// The zstd level: zstd's default.
const LEVEL: i32 = 3;
/// The largest number of bytes of one step.
const STEP_BYTES_MAX: usize = 64 << 10;
/// The size of the buffer in front of what is recorded to.
const BUFFER_BYTES: usize = 256 << 10;

/// Records a recipe.
pub struct Recorder<'w> {
    out: zstd::Encoder<'static, BufWriter<Box<dyn Write + 'w>>>,
    /// Bytes that belong to one step.
    pending: Vec<u8>,
    /// The first error; nothing is recorded after it.
    fault: Option<io::Error>,
}

impl<'w> Recorder<'w> {
    /// Returns a recorder that writes to `out`.
    ///
    /// # Errors
    /// If the compressor cannot start.
    pub fn new(out: Box<dyn Write + 'w>) -> io::Result<Self> {
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        Ok(Self {
            out: zstd::Encoder::new(out, LEVEL)?,
            pending: Vec::with_capacity(STEP_BYTES_MAX),
            fault: None,
        })
    }

    /// Ends the recipe.
    ///
    /// # Errors
    /// The first error of the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.put_pending();
        self.put(&[END]);
        match self.fault {
            Some(fault) => Err(fault),
            None => self.out.finish()?.flush(),
        }
    }

    /// Adds bytes of the tar.
    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = STEP_BYTES_MAX - self.pending.len();
            let (now, later) = bytes.split_at(space.min(bytes.len()));
            self.pending.extend_from_slice(now);
            if self.pending.len() == STEP_BYTES_MAX {
                self.put_pending();
            }
            bytes = later;
        }
    }

    /// Adds parts of a file of the layer.
    fn content(&mut self, path: &[u8], segments: &[Segment]) {
        self.put_pending();
        let mut step = vec![CONTENT];
        number(&mut step, path.len() as u64);
        step.extend_from_slice(path);
        number(&mut step, segments.len() as u64);
        for segment in segments {
            number(&mut step, segment.offset_bytes);
            number(&mut step, segment.len_bytes);
        }
        self.put(&step);
    }

    fn put_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let mut step = vec![BYTES];
        number(&mut step, pending.len() as u64);
        self.put(&step);
        self.put(&pending);
        self.pending = pending;
        self.pending.clear();
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.out.write_all(bytes).err();
        }
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// A tar stream, of which everything is recorded that is read outside of a file's content.
pub(crate) struct Recording<'r, 'w, R> {
    inner: R,
    recorder: Option<&'r mut Recorder<'w>>,
    is_content: bool,
}

impl<'r, 'w, R> Recording<'r, 'w, R> {
    /// Returns a stream that is recorded if there is a recorder.
    pub(crate) const fn new(inner: R, recorder: Option<&'r mut Recorder<'w>>) -> Self {
        Self {
            inner,
            recorder,
            is_content: false,
        }
    }

    /// Says that the next bytes are parts of the file at `path`.
    pub(crate) fn begin_content(&mut self, path: &[u8], segments: &[Segment]) {
        self.is_content = true;
        if let Some(recorder) = &mut self.recorder {
            recorder.content(path, segments);
        }
    }

    /// Says that the file's content has ended.
    pub(crate) const fn end_content(&mut self) {
        self.is_content = false;
    }
}

impl<R: Read> Read for Recording<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        if let (Some(recorder), false) = (&mut self.recorder, self.is_content) {
            recorder.bytes(&buffer[..len]);
        }
        Ok(len)
    }
}
