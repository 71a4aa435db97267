//! The first record: which snapshot the stream holds, and what it is a difference to.

use super::{ALIGNMENT_BYTES, BEGIN_BYTES_MAX};
use crate::identity::Identity;
use cowshed_engine::{Labels, MAX_LABELS_BYTES, MAX_VOLUME_BYTES, Name};
use cowshed_format::base::codec::{Reader, Writer};

/// The base of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseName {
    /// Which snapshot it is.
    pub identity: Identity,
    /// Its name where the stream was sent, for messages.
    pub name: Name,
}

/// The properties of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Which snapshot it holds.
    pub identity: Identity,
    /// The snapshot's name where it was sent.
    pub name: Name,
    /// Its size.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: Labels,
    /// The base, if the stream is a difference.
    pub base: Option<BaseName>,
    /// The offset at which an interrupted stream goes on; 0 if it is from its start.
    pub position: u64,
    /// The number of bytes of data that follow, for progress and to compare with the free space.
    pub data_bytes: u64,
}

impl Begin {
    /// Returns the encoded payload; `position` and `size_bytes` are in the record's header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        self.identity.encode(&mut out);
        out.short_bytes(self.name.as_str().as_bytes());
        out.u64(self.data_bytes);
        match &self.base {
            None => drop(out.u8(0)),
            Some(base) => {
                base.identity.encode(out.u8(1));
                out.short_bytes(base.name.as_str().as_bytes());
            }
        }
        let count = u16::try_from(self.labels.len()).expect("labels are bounded by the engine");
        out.u16(count);
        for (key, value) in &self.labels {
            out.short_bytes(key.as_bytes())
                .short_bytes(value.as_bytes());
        }
        let payload = out.into_bytes();
        assert!(
            payload.len() <= BEGIN_BYTES_MAX,
            "names and labels are bounded"
        );
        payload
    }

    /// Returns the properties in a payload, or the rule that it breaks.
    pub(super) fn decode(
        payload: &[u8],
        position: u64,
        size_bytes: u64,
    ) -> Result<Self, &'static str> {
        let mut input = Reader::new(payload);
        let begin = Self::fields(&mut input, position, size_bytes)
            .filter(|_| input.is_empty())
            .ok_or("it does not say what the stream holds")?;
        if !(1..=MAX_VOLUME_BYTES).contains(&size_bytes) {
            return Err("no volume has such a size");
        }
        if position > size_bytes
            || (position != size_bytes && !position.is_multiple_of(ALIGNMENT_BYTES))
        {
            return Err("it goes on at no place of the volume");
        }
        if begin.data_bytes > size_bytes {
            return Err("it announces more bytes than the volume has");
        }
        let labels = begin.labels.iter();
        let bytes = labels.map(|(key, value)| key.len() + value.len() + 4);
        if bytes.sum::<usize>() > MAX_LABELS_BYTES {
            return Err("its labels are longer than a volume's may be");
        }
        Ok(begin)
    }

    fn fields(input: &mut Reader<'_>, position: u64, size_bytes: u64) -> Option<Self> {
        let identity = Identity::decode(input)?;
        let name = take_name(input)?;
        let data_bytes = input.u64()?;
        let base = match input.u8()? {
            0 => None,
            1 => Some(BaseName {
                identity: Identity::decode(input)?,
                name: take_name(input)?,
            }),
            _ => return None,
        };
        let mut labels = Labels::new();
        for _ in 0..input.u16()? {
            let (key, value) = (take_text(input)?, take_text(input)?);
            if labels.insert(key, value).is_some() {
                return None;
            }
        }
        Some(Self {
            identity,
            name,
            size_bytes,
            labels,
            base,
            position,
            data_bytes,
        })
    }
}

fn take_text(input: &mut Reader<'_>) -> Option<String> {
    String::from_utf8(input.short_bytes()?.to_vec()).ok()
}

pub(super) fn take_name(input: &mut Reader<'_>) -> Option<Name> {
    Name::new(&take_text(input)?).ok()
}
