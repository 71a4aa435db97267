//! Operations: the changes of a pool's state that log records carry.

use crate::base::codec::{Reader, Writer};
use crate::base::{BlockAddr, BlockIndex, Name, VolumeId};
use std::collections::BTreeMap;

/// Maximum number of blocks that one write operation maps.
pub const MAX_WRITE_BLOCKS: usize = 256;

/// A run of blocks that a write maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first block's address; `None` maps holes.
    pub addr: Option<BlockAddr>,
    /// The number of blocks.
    pub count: u32,
}

/// One change of the pool's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Maps blocks from `first` on.
    Write {
        /// The volume.
        volume: VolumeId,
        /// The first block that is mapped.
        first: BlockIndex,
        /// The runs of blocks, in order.
        runs: Vec<Run>,
        /// The CRC-32 of each block that is not a hole, in order.
        crcs: Vec<u32>,
    },
    /// Makes a range of blocks a hole.
    Discard {
        /// The volume.
        volume: VolumeId,
        /// The first block.
        first: BlockIndex,
        /// The number of blocks.
        count: u64,
    },
    /// Makes an empty volume.
    Create {
        /// Its id.
        volume: VolumeId,
        /// Its name.
        name: Name,
        /// Its size in bytes.
        size_bytes: u64,
        /// Its creation time, in nanoseconds since 1970.
        created_ns: u64,
    },
    /// Freezes a volume's present state under a new id; the volume becomes the new snapshot's
    /// child.
    Snapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's id.
        snapshot: VolumeId,
        /// The snapshot's name.
        name: Name,
        /// The snapshot's creation time, in nanoseconds since 1970.
        created_ns: u64,
    },
    /// Makes a writable child of a snapshot.
    Clone {
        /// The snapshot.
        snapshot: VolumeId,
        /// The new volume's id.
        volume: VolumeId,
        /// The new volume's name.
        name: Name,
        /// The new volume's creation time, in nanoseconds since 1970.
        created_ns: u64,
    },
    /// Makes a volume a snapshot for ever.
    Freeze {
        /// The volume.
        volume: VolumeId,
    },
    /// Changes a volume's size.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// Its new size in bytes.
        size_bytes: u64,
    },
    /// Changes a volume's name.
    Rename {
        /// The volume.
        volume: VolumeId,
        /// Its new name.
        name: Name,
    },
    /// Replaces a volume's labels.
    Label {
        /// The volume.
        volume: VolumeId,
        /// Its new labels.
        labels: BTreeMap<String, String>,
    },
    /// Takes a volume's name away and hands its blocks to reclaim.
    Remove {
        /// The volume.
        volume: VolumeId,
    },
    /// Makes a volume a fresh clone of its ancestor; its old contents become `discarded`, removed.
    Rollback {
        /// The volume.
        volume: VolumeId,
        /// The ancestor.
        snapshot: VolumeId,
        /// The id under which the old state is reclaimed.
        discarded: VolumeId,
    },
    /// Stores a record of a crate above.
    PutRecord {
        /// The kind of record, which tells its owner.
        kind: u16,
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Removes a record of a crate above.
    RemoveRecord {
        /// The kind of record, which tells its owner.
        kind: u16,
        /// Its key.
        key: Vec<u8>,
    },
}

impl Operation {
    /// Appends the encoded operation to `out`.
    pub fn encode(&self, out: &mut Writer) {
        match self {
            Self::Write {
                volume,
                first,
                runs,
                crcs,
            } => encode_write(out, *volume, *first, runs, crcs),
            Self::Discard {
                volume,
                first,
                count,
            } => {
                out.u8(2).u64(volume.0).u64(first.0).u64(*count);
            }
            Self::Create {
                volume,
                name,
                size_bytes,
                created_ns,
            } => {
                out.u8(3).u64(volume.0).u64(*size_bytes).u64(*created_ns);
                out.short_bytes(name.as_str().as_bytes());
            }
            Self::Snapshot {
                volume,
                snapshot,
                name,
                created_ns,
            } => {
                out.u8(4).u64(volume.0).u64(snapshot.0).u64(*created_ns);
                out.short_bytes(name.as_str().as_bytes());
            }
            Self::Clone {
                snapshot,
                volume,
                name,
                created_ns,
            } => {
                out.u8(5).u64(snapshot.0).u64(volume.0).u64(*created_ns);
                out.short_bytes(name.as_str().as_bytes());
            }
            Self::Freeze { volume } => {
                out.u8(6).u64(volume.0);
            }
            Self::Resize { volume, size_bytes } => {
                out.u8(7).u64(volume.0).u64(*size_bytes);
            }
            Self::Rename { volume, name } => {
                out.u8(8)
                    .u64(volume.0)
                    .short_bytes(name.as_str().as_bytes());
            }
            Self::Label { volume, labels } => {
                out.u8(9).u64(volume.0);
                encode_labels(out, labels);
            }
            Self::Remove { volume } => {
                out.u8(10).u64(volume.0);
            }
            Self::Rollback {
                volume,
                snapshot,
                discarded,
            } => {
                out.u8(11).u64(volume.0).u64(snapshot.0).u64(discarded.0);
            }
            Self::PutRecord { kind, key, value } => {
                out.u8(12).u16(*kind).short_bytes(key).long_bytes(value);
            }
            Self::RemoveRecord { kind, key } => {
                out.u8(13).u16(*kind).short_bytes(key);
            }
        }
    }

    /// Takes an operation off the front of `input`.
    pub fn decode(input: &mut Reader<'_>) -> Option<Self> {
        Some(match input.u8()? {
            1 => decode_write(input)?,
            2 => Self::Discard {
                volume: id(input)?,
                first: BlockIndex(input.u64()?),
                count: input.u64()?,
            },
            3 => {
                let (volume, size_bytes, created_ns) = (id(input)?, input.u64()?, input.u64()?);
                Self::Create {
                    volume,
                    name: name(input)?,
                    size_bytes,
                    created_ns,
                }
            }
            4 => {
                let (volume, snapshot, created_ns) = (id(input)?, id(input)?, input.u64()?);
                Self::Snapshot {
                    volume,
                    snapshot,
                    name: name(input)?,
                    created_ns,
                }
            }
            5 => {
                let (snapshot, volume, created_ns) = (id(input)?, id(input)?, input.u64()?);
                Self::Clone {
                    snapshot,
                    volume,
                    name: name(input)?,
                    created_ns,
                }
            }
            6 => Self::Freeze { volume: id(input)? },
            7 => Self::Resize {
                volume: id(input)?,
                size_bytes: input.u64()?,
            },
            8 => Self::Rename {
                volume: id(input)?,
                name: name(input)?,
            },
            9 => Self::Label {
                volume: id(input)?,
                labels: decode_labels(input)?,
            },
            10 => Self::Remove { volume: id(input)? },
            11 => Self::Rollback {
                volume: id(input)?,
                snapshot: id(input)?,
                discarded: id(input)?,
            },
            12 => Self::PutRecord {
                kind: input.u16()?,
                key: input.short_bytes()?.to_vec(),
                value: input.long_bytes()?.to_vec(),
            },
            13 => Self::RemoveRecord {
                kind: input.u16()?,
                key: input.short_bytes()?.to_vec(),
            },
            _ => return None,
        })
    }
}

/// Appends an encoded write operation to `out`, from borrowed parts; for the hot path.
pub fn encode_write(
    out: &mut Writer,
    volume: VolumeId,
    first: BlockIndex,
    runs: &[Run],
    crcs: &[u32],
) {
    let count = u16::try_from(runs.len()).expect("a write has at most 256 runs");
    out.u8(1).u64(volume.0).u64(first.0).u16(count);
    for run in runs {
        out.u64(run.addr.map_or(0, |addr| addr.0) | u64::from(run.count) << 40);
    }
    for crc in crcs {
        out.u32(*crc);
    }
}

fn decode_write(input: &mut Reader<'_>) -> Option<Operation> {
    let (volume, first, count) = (id(input)?, BlockIndex(input.u64()?), input.u16()?);
    if count == 0 || usize::from(count) > MAX_WRITE_BLOCKS {
        return None;
    }
    let (mut runs, mut blocks, mut data_blocks) = (Vec::new(), 0usize, 0usize);
    for _ in 0..count {
        let word = input.u64()?;
        let addr = word & ((1 << 40) - 1);
        let run = Run {
            addr: (addr != 0).then_some(BlockAddr(addr)),
            count: u32::try_from(word >> 40).ok()?,
        };
        let len = usize::try_from(run.count).ok()?;
        blocks += len;
        data_blocks += if run.addr.is_some() { len } else { 0 };
        if len == 0 || blocks > MAX_WRITE_BLOCKS {
            return None;
        }
        runs.push(run);
    }
    let crcs = (0..data_blocks)
        .map(|_| input.u32())
        .collect::<Option<Vec<u32>>>()?;
    Some(Operation::Write {
        volume,
        first,
        runs,
        crcs,
    })
}

/// Appends encoded labels to `out`.
pub fn encode_labels(out: &mut Writer, labels: &BTreeMap<String, String>) {
    out.u16(u16::try_from(labels.len()).expect("labels are bounded before"));
    for (key, value) in labels {
        out.short_bytes(key.as_bytes())
            .short_bytes(value.as_bytes());
    }
}

/// Takes labels off the front of `input`.
pub fn decode_labels(input: &mut Reader<'_>) -> Option<BTreeMap<String, String>> {
    let count = input.u16()?;
    let mut labels = BTreeMap::new();
    for _ in 0..count {
        let key = String::from_utf8(input.short_bytes()?.to_vec()).ok()?;
        let value = String::from_utf8(input.short_bytes()?.to_vec()).ok()?;
        labels.insert(key, value);
    }
    Some(labels)
}

fn id(input: &mut Reader<'_>) -> Option<VolumeId> {
    input.u64().map(VolumeId)
}

fn name(input: &mut Reader<'_>) -> Option<Name> {
    Name::new(std::str::from_utf8(input.short_bytes()?).ok()?).ok()
}
