//! A small mutator for runs without libFuzzer: flips, overwrites, copies, inserts and cuts.

use rand::Rng;
use rand::rngs::StdRng;

/// The maximum size of an input.
const BYTES_MAX: usize = 64 << 10;
/// Numbers that are likely to reveal errors.
const EDGES: [u64; 10] = [
    0,
    1,
    7,
    0xff,
    0xffff,
    1 << 31,
    u32::MAX as u64,
    1 << 48,
    1 << 63,
    u64::MAX,
];

/// Makes a few random changes of `bytes`, possibly with parts of `other`.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=6) {
        if bytes.is_empty() {
            bytes.push(rng.random());
        }
        let at = rng.random_range(0..bytes.len());
        let len = rng.random_range(1..=32.min(bytes.len() - at));
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => {
                let edge = EDGES[rng.random_range(0..EDGES.len())].to_le_bytes();
                for (byte, edge) in bytes[at..].iter_mut().zip(edge) {
                    *byte = edge;
                }
            }
            3 => {
                let piece = bytes[at..at + len].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            4 => drop(bytes.drain(at..at + len)),
            5 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                let piece = &other[from..other.len().min(from + 64)];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let to = rng.random_range(0..=bytes.len() - len);
                bytes.copy_within(at..at + len, to);
            }
        }
    }
    bytes.truncate(BYTES_MAX);
}
