//! Detection of files that hold a disk, but not byte for byte: formats of virtual machines,
//! compressed files and archives. They are recognised by their first or last bytes, never by their
//! name.

use cowshed_daemon::request::FileOrPipe;

/// Number of bytes examined at the start.
pub(super) const HEAD_BYTES: usize = 1024;
/// Number of bytes examined at the end.
pub(super) const TAIL_BYTES: usize = 512;

/// A format that does not hold a disk byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    name: &'static str,
    /// The way to convert it into the bytes of a disk.
    remedy: Remedy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// `qemu-img convert` reads this format.
    Convert(&'static str),
    /// A program that writes the disk's bytes to its standard output.
    Unpack(&'static str),
    /// A program that writes a file.
    Other(&'static str),
}

use Remedy::{Convert, Other, Unpack};

/// The offset of each mark, its bytes, the name of its format, and the remedy.
const MARKS: [(usize, &[u8], &str, Remedy); 26] = [
    (0, b"QFI\xfb", "a qcow2 image", Convert("qcow2")),
    (0, b"QED\0", "a QED image", Convert("qed")),
    (0, b"KDMV", "a VMDK image", Convert("vmdk")),
    (0, b"COWD", "a VMDK image", Convert("vmdk")),
    (
        0,
        b"# Disk DescriptorFile",
        "a VMDK descriptor",
        Convert("vmdk"),
    ),
    (0, b"vhdxfile", "a VHDX image", Convert("vhdx")),
    (0, b"conectix", "a VHD image", Convert("vpc")),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", Convert("vdi")),
    (64, b"\xbe\xda\x10\x7f", "a VDI image", Convert("vdi")),
    (
        0,
        b"WithoutFreeSpace",
        "a Parallels image",
        Convert("parallels"),
    ),
    (
        0,
        b"WithouFreSpacExt",
        "a Parallels image",
        Convert("parallels"),
    ),
    (
        0,
        b"Bochs Virtual HD Image",
        "a Bochs image",
        Convert("bochs"),
    ),
    (
        0,
        b"\x3a\xff\x26\xed",
        "an Android sparse image",
        Other("simg2img FILE disk.raw"),
    ),
    (
        0,
        b"\x1f\x8b\x08",
        "compressed with gzip",
        Unpack("gzip -dc"),
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        Unpack("zstd -dc"),
    ),
    (0, b"\xfd7zXZ\0", "compressed with xz", Unpack("xz -dc")),
    (
        0,
        b"\x04\x22\x4d\x18",
        "compressed with lz4",
        Unpack("lz4 -dc"),
    ),
    (0, b"LZIP\x01", "compressed with lzip", Unpack("lzip -dc")),
    (
        0,
        b"\x89LZO\0\r\n\x1a\n",
        "compressed with lzop",
        Unpack("lzop -dc"),
    ),
    (
        0,
        b"\x5d\0\0\x80\0\xff",
        "compressed with lzma",
        Unpack("xz --format=lzma -dc"),
    ),
    (0, b"PK\x03\x04", "a zip archive", Unpack("unzip -p")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Unpack("7z x -so")),
    (257, b"ustar", "a tar archive", Other("tar -xf FILE")),
    (0, b"MSWIM\0\0\0", "a WIM image", Other("wimapply FILE")),
    (
        0,
        b"EVF\x09\x0d\x0a\xff\0",
        "an E01 image",
        Other("ewfexport FILE"),
    ),
    (
        0,
        b"AFF10\r\n\0",
        "an AFF image",
        Other("affconvert -r FILE"),
    ),
];

/// Returns the format of a file with this beginning and end, unless it is a disk's bytes. `tail` is
/// empty while the end is not known yet.
pub(super) fn recognise(head: &[u8], tail: &[u8]) -> Option<Foreign> {
    let is_there =
        |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let found = MARKS
        .iter()
        .find(|(at, mark, ..)| is_there(*at, mark))
        .map(|(_, _, name, remedy)| (*name, *remedy));
    let found = found.or_else(|| {
        // `BZh`, the level, and the mark of the first block.
        let is_bzip2 = is_there(0, b"BZh") && is_there(4, b"1AY&SY");
        is_bzip2.then_some(("compressed with bzip2", Unpack("bzip2 -dc")))
    });
    // A disk with a trailer.
    let found = found.or_else(|| {
        tail.starts_with(b"conectix")
            .then_some(("a VHD image", Convert("vpc")))
    });
    let found = found.or_else(|| {
        tail.starts_with(b"koly")
            .then_some(("a DMG image", Convert("dmg")))
    });
    found.map(|(name, remedy)| Foreign { name, remedy })
}

impl Foreign {
    /// Returns the reason why `source` is not imported as the volume `volume`, and a remedy.
    pub(super) fn refusal(self, source: &FileOrPipe, volume: &str) -> String {
        let (name, file) = match source {
            FileOrPipe::Pipe => (self.name, "FILE".to_owned()),
            FileOrPipe::File(path) => (self.name, quoted(&path.to_string())),
        };
        let way = match self.remedy {
            Convert(format) => format!(
                "convert it with `qemu-img convert -f {format} -O raw {file} disk.raw` and import disk.raw"
            ),
            Unpack(command) => {
                format!("use `{command} {file} | cowshed volume import {volume} -`")
            }
            Other(command) => format!(
                "unpack it with `{}` and import the raw disk image",
                command.replace("FILE", &file)
            ),
        };
        format!("it is {name} and not a raw disk image; {way}, or import it unchanged with --raw")
    }
}

/// Quotes a path for a shell.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if path.chars().all(is_plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::place::parse_file;

    #[test]
    fn every_mark_is_found_at_its_place_and_only_there() {
        for (at, mark, name, _) in MARKS {
            let mut head = vec![0; HEAD_BYTES];
            head[at..at + mark.len()].copy_from_slice(mark);
            assert_eq!(recognise(&head, &[]).map(|it| it.name), Some(name));
            head.insert(0, 0);
            assert_eq!(recognise(&head, &[]), None, "{name}");
            assert_eq!(recognise(&mark[..mark.len() - 1], &[]), None, "{name}");
        }
        assert!(recognise(b"BZh91AY&SY", &[]).is_some());
        assert_eq!(recognise(b"BZh9", &[]), None);
        assert!(recognise(&[0; 512], b"conectix").is_some());
        assert_eq!(recognise(&[], &[]), None);
    }

    #[test]
    fn a_refusal_names_the_command_for_the_file_as_a_shell_reads_it() {
        let file = |path: &str| parse_file(path.as_ref()).unwrap();
        let qcow2 = recognise(b"QFI\xfb", &[]).unwrap();
        let said = qcow2.refusal(&file("/tmp/it's a disk"), "vm");
        assert!(
            said.contains(r"`qemu-img convert -f qcow2 -O raw '/tmp/it'\''s a disk' disk.raw`"),
            "{said}"
        );
        let zstd = recognise(b"\x28\xb5\x2f\xfd", &[]).unwrap();
        let said = zstd.refusal(&FileOrPipe::Pipe, "vm");
        assert!(
            said.contains("`zstd -dc FILE | cowshed volume import vm -`"),
            "{said}"
        );
    }
}
