//! The sector size that a volume was made for: 512 or 4096 bytes. It is stored as a label of the
//! volume, given by a user or guessed from the volume's contents, and clones inherit it.
//!
//! A partition table counts in sectors, and many file systems refuse a device with larger sectors
//! than those they were made on.

use cowshed_daemon::request::attach::SectorSize;
use cowshed_engine::{Labels, Volume};
use cowshed_format::base::Result;

/// The label.
const LABEL: &str = "cowshed.sector-size";
/// Number of bytes of a volume that are examined.
const HEAD_BYTES: usize = 68 << 10;

const fn of_bytes(bytes: u64) -> Option<SectorSize> {
    match bytes {
        512..=2048 => Some(SectorSize::Small),
        4096 => Some(SectorSize::Large),
        _ => None,
    }
}

/// Returns the sector size in the labels.
pub(super) fn kept(labels: &Labels) -> Option<SectorSize> {
    of_bytes(labels.get(LABEL)?.parse().ok()?)
}

/// Adds the sector size to labels.
pub(super) fn keep(labels: &mut Labels, size: SectorSize) {
    labels.insert(LABEL.to_owned(), size.bytes().to_string());
}

/// Stores the size in the labels of `volume`.
///
/// # Errors
/// The engine's error.
pub(super) fn keep_with(
    volume: &Volume,
    pool: &cowshed_engine::Pool,
    size: SectorSize,
) -> Result<()> {
    let mut labels = volume.info()?.labels;
    if kept(&labels) == Some(size) {
        return Ok(());
    }
    keep(&mut labels, size);
    pool.set_labels(volume, labels)
}

/// Guesses the sector size for which the volume's contents were made; `None` if they do not show
/// it.
///
/// # Errors
/// The engine's error.
pub(super) fn guess_of(volume: &Volume) -> Result<Option<SectorSize>> {
    let size_bytes = volume.size_bytes();
    let len = usize::try_from(size_bytes).map_or(HEAD_BYTES, |size| size.min(HEAD_BYTES));
    let mut head = vec![0; len];
    volume.read_at(&mut head, 0)?;
    Ok(guess(&head))
}

/// Guesses the sector size for which a disk that begins with `head` was made.
fn guess(head: &[u8]) -> Option<SectorSize> {
    let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let le = |at: usize, len: usize| {
        let bytes = head.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    // The header of a GUID partition table lies in the second sector.
    if has(4096, b"EFI PART") && !has(512, b"EFI PART") {
        return Some(SectorSize::Large);
    }
    if has(512, b"EFI PART") {
        return Some(SectorSize::Small);
    }
    if has(0, b"XFSB") {
        let bytes = head.get(102..104)?;
        return of_bytes(u64::from(bytes[0]) << 8 | u64::from(bytes[1]));
    }
    // ext2, 3 and 4: a block is at least a sector.
    if has(1024 + 0x38, b"\x53\xef") {
        return match le(1024 + 0x18, 4)? {
            0 | 1 => Some(SectorSize::Small),
            _ => None,
        };
    }
    // F2FS.
    if has(1024, b"\x10\x20\xf5\xf2") {
        return of_bytes(1_u64.checked_shl(u32::try_from(le(1024 + 8, 4)?).ok()?)?);
    }
    if has(3, b"EXFAT   ") {
        return of_bytes(1_u64.checked_shl(u32::try_from(le(108, 1)?).ok()?)?);
    }
    // LUKS: version 2 has the size in its JSON text.
    if has(0, b"LUKS\xba\xbe") {
        let text = b"\"sector_size\":4096";
        let is_large = has(6, &[0, 2]) && head.windows(text.len()).any(|part| part == text);
        return Some(if is_large {
            SectorSize::Large
        } else {
            SectorSize::Small
        });
    }
    // A physical volume of LVM; ISO 9660, whose blocks have 2048 bytes.
    if has(512, b"LABELONE") || has(0x8001, b"CD001") {
        return Some(SectorSize::Small);
    }
    if has(510, b"\x55\xaa") {
        // FAT and NTFS contain the size; anything else with this mark is a DOS partition table.
        let is_fat = has(3, b"NTFS    ") || has(54, b"FAT") || has(82, b"FAT32");
        let stated = is_fat.then(|| le(11, 2)).flatten();
        return stated.map_or(Some(SectorSize::Small), of_bytes);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (at, mark) in marks {
            head[*at..at + mark.len()].copy_from_slice(mark);
        }
        head
    }

    #[test]
    fn what_a_disk_holds_tells_its_sectors() {
        let (small, large) = (Some(SectorSize::Small), Some(SectorSize::Large));
        let dos: (usize, &[u8]) = (510, b"\x55\xaa");
        for (what, marks, wanted) in [
            ("nothing", &[][..], None),
            ("GPT of 512", &[dos, (512, b"EFI PART")], small),
            ("GPT of 4096", &[dos, (4096, b"EFI PART")], large),
            ("DOS partitions", &[dos], small),
            ("FAT", &[dos, (82, b"FAT32"), (11, &[0, 2])], small),
            ("FAT of 4096", &[dos, (54, b"FAT16"), (11, &[0, 16])], large),
            (
                "NTFS of 4096",
                &[dos, (3, b"NTFS    "), (11, &[0, 16])],
                large,
            ),
            ("exFAT", &[dos, (3, b"EXFAT   "), (108, &[9])], small),
            ("XFS", &[(0, b"XFSB"), (102, &[2, 0])], small),
            ("XFS of 4096", &[(0, b"XFSB"), (102, &[16, 0])], large),
            ("ext4 of 1 KiB", &[(1080, b"\x53\xef")], small),
            ("ext4 of 4 KiB", &[(1080, b"\x53\xef"), (1048, &[2])], None),
            ("F2FS", &[(1024, b"\x10\x20\xf5\xf2"), (1032, &[9])], small),
            ("LVM", &[(512, b"LABELONE")], small),
            ("ISO 9660", &[(0x8001, b"CD001")], small),
            ("LUKS 1", &[(0, b"LUKS\xba\xbe\0\x01")], small),
            (
                "LUKS 2",
                &[(0, b"LUKS\xba\xbe\0\x02"), (5000, b"\"sector_size\":4096")],
                large,
            ),
        ] {
            assert_eq!(guess(&head(marks)), wanted, "{what}");
        }
        // Contents shorter than every mark.
        for len in [0, 1, 103, 512, 1025] {
            guess(&head(&[(0, b"XFSB")])[..len]);
        }
    }

    #[test]
    fn the_label_says_what_was_kept() {
        let mut labels = Labels::new();
        assert_eq!(kept(&labels), None);
        keep(&mut labels, SectorSize::Small);
        assert_eq!(kept(&labels), Some(SectorSize::Small));
        keep(&mut labels, SectorSize::Large);
        assert_eq!(kept(&labels), Some(SectorSize::Large));
    }
}
