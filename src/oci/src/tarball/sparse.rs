//! The maps of sparse files, in the four formats of GNU tar.

use super::number;
use super::{RECORD_BYTES, Segment};
use crate::error::HeaderFault;
use crate::limits::SEGMENTS_MAX;

/// Bytes of one offset-and-length pair in a GNU header.
const PAIR_BYTES: usize = 24;

/// Adds the pairs of a GNU header or of its continuation; an empty pair ends the list.
pub(super) fn gnu_pairs(bytes: &[u8], into: &mut Vec<Segment>) -> Result<(), HeaderFault> {
    for pair in bytes.chunks_exact(PAIR_BYTES) {
        let (offset, len) = pair.split_at(PAIR_BYTES / 2);
        if offset[0] == 0 && len[0] == 0 {
            break;
        }
        let offset_bytes = number::unsigned(offset).ok_or(HeaderFault::Sparse)?;
        let len_bytes = number::unsigned(len).ok_or(HeaderFault::Sparse)?;
        push(into, offset_bytes, len_bytes)?;
    }
    Ok(())
}

/// Parses the map of format 0.1: alternating offsets and lengths, with commas.
pub(super) fn comma_list(text: &[u8]) -> Result<Vec<Segment>, HeaderFault> {
    let mut segments = Vec::new();
    let mut numbers = text.split(|byte| *byte == b',').map(number::decimal);
    while let Some(offset) = numbers.next() {
        let len = numbers.next().flatten();
        let (Some(offset), Some(len)) = (offset, len) else {
            return Err(HeaderFault::Sparse);
        };
        push(&mut segments, offset, len)?;
    }
    Ok(segments)
}

/// The map of format 1.0, which precedes the data: decimal lines, the count first, in whole
/// records.
#[derive(Default)]
pub(super) struct LeadingMap {
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl LeadingMap {
    /// The maximum length of a line: a number of 64 bits has at most 20 digits.
    const LINE_BYTES_MAX: usize = 20;

    /// Adds the next record; returns true if the map is complete.
    pub(super) fn take(&mut self, record: &[u8; RECORD_BYTES]) -> Result<bool, HeaderFault> {
        for byte in record {
            if self.is_complete() {
                break;
            }
            if *byte != b'\n' {
                if self.line.len() == Self::LINE_BYTES_MAX {
                    return Err(HeaderFault::Sparse);
                }
                self.line.push(*byte);
                continue;
            }
            let value = number::decimal(&self.line).ok_or(HeaderFault::Sparse)?;
            self.line.clear();
            match (self.count, self.offset.take()) {
                (None, _) => self.count = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => push(&mut self.segments, offset, value)?,
            }
        }
        Ok(self.is_complete())
    }

    /// Returns the segments of a complete map.
    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    fn is_complete(&self) -> bool {
        let have = u64::try_from(self.segments.len()).unwrap_or(u64::MAX);
        self.count.is_some_and(|count| count <= have)
    }
}

pub(super) fn push(
    segments: &mut Vec<Segment>,
    offset_bytes: u64,
    len_bytes: u64,
) -> Result<(), HeaderFault> {
    if segments.len() == SEGMENTS_MAX {
        return Err(HeaderFault::Sparse);
    }
    segments.push(Segment {
        offset_bytes,
        len_bytes,
    });
    Ok(())
}

/// Checks that the segments ascend without overlap, end within the file and together have exactly
/// the stored bytes; empty ones, which only mark the file's end, are dropped.
pub(super) fn validate(
    segments: &mut Vec<Segment>,
    size_bytes: u64,
    stored_bytes: u64,
) -> Result<(), HeaderFault> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in segments.iter() {
        if segment.offset_bytes < end {
            return Err(HeaderFault::Sparse);
        }
        end = segment
            .offset_bytes
            .checked_add(segment.len_bytes)
            .ok_or(HeaderFault::Sparse)?;
        total = total
            .checked_add(segment.len_bytes)
            .ok_or(HeaderFault::Sparse)?;
    }
    if end > size_bytes || total != stored_bytes {
        return Err(HeaderFault::Sparse);
    }
    segments.retain(|segment| segment.len_bytes > 0);
    Ok(())
}
