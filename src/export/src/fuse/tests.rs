//! Tests of requests without a kernel: hostile ones, and those that come twice.

use super::abi::{
    FallocateIn, InHeader, LseekIn, OpenIn, OpenOut, OutHeader, ROOT, ReadIn, ReleaseIn,
    UNIQUE_RESEND, WriteIn, opcode,
};
use super::files::VolumeFiles;
use super::handover_state::HandoverState;
use super::transport::{Frame, REQUEST_BYTES_MAX};
use crate::entry::inode;
use crate::own_opens::OwnOpens;
use crate::tests::fake::{FakePool, FakeVolume};
use cowshed_format::base::VolumeId;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use zerocopy::{FromBytes, IntoBytes};

const MIB: u64 = 1 << 20;

struct Server {
    files: VolumeFiles,
    frame: Frame,
    handover_state: HandoverState,
    pool: Arc<FakePool>,
    volume: Arc<FakeVolume>,
}

impl Server {
    fn new() -> Self {
        let pool = FakePool::new();
        let volume = pool.create("v", MIB);
        let handover_state = HandoverState::create().unwrap();
        Self {
            files: VolumeFiles::new(
                pool.clone(),
                OwnOpens::default(),
                handover_state.records().clone(),
            ),
            frame: Frame::new(),
            handover_state,
            pool,
            volume,
        }
    }

    /// Returns the successor after this server has died, which drops its holds.
    fn successor(self) -> Self {
        let memfd = self
            .handover_state
            .descriptor()
            .try_clone_to_owned()
            .unwrap();
        let handover_state = HandoverState::adopt(memfd).unwrap();
        drop(self.files);
        assert_eq!(self.volume.holds(), 0);
        Self {
            files: VolumeFiles::new(
                self.pool.clone(),
                OwnOpens::default(),
                handover_state.records().clone(),
            ),
            frame: Frame::new(),
            handover_state,
            pool: self.pool,
            volume: self.volume,
        }
    }

    /// Returns the error and the body of the reply.
    fn ask(&mut self, code: u32, unique: u64, arguments: &[u8]) -> Option<(i32, Vec<u8>)> {
        self.ask_of(inode(VolumeId(1)), code, unique, arguments)
    }

    fn ask_of(
        &mut self,
        nodeid: u64,
        code: u32,
        unique: u64,
        arguments: &[u8],
    ) -> Option<(i32, Vec<u8>)> {
        let len = size_of::<InHeader>() + arguments.len();
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode: code,
            unique,
            nodeid,
            ..InHeader::default()
        };
        let request = [header.as_bytes(), arguments].concat();
        let answer = self.frame.ask(&self.files, &request)?;
        let (head, body) = OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!(head.len as usize, answer.len());
        assert_eq!(head.unique, unique);
        assert!((-511..=0).contains(&head.error), "{head:?}");
        assert!(head.error == 0 || body.is_empty());
        Some((head.error, body.to_vec()))
    }

    fn open(&mut self, unique: u64) -> u64 {
        let (error, body) = self
            .ask(opcode::OPEN, unique, OpenIn::default().as_bytes())
            .unwrap();
        assert_eq!(error, 0);
        OpenOut::read_from_bytes(&body).unwrap().fh
    }

    fn release(&mut self, unique: u64, fh: u64) {
        let wanted = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        let answer = self.ask(opcode::RELEASE, unique, wanted.as_bytes());
        assert_eq!(answer, Some((0, Vec::new())));
    }

    fn read_at(&mut self, fh: u64, offset: u64, size: u32) -> (i32, Vec<u8>) {
        let wanted = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.ask(opcode::READ, 2, wanted.as_bytes()).unwrap()
    }
}

#[test]
fn no_request_however_short_or_strange_breaks_the_server() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::new();
    let fh = server.open(2);
    for code in (0..64).chain([4096, u32::MAX]) {
        for len in (0..=160).chain([4096, 8192, 20_000]) {
            let mut arguments = vec![0; len];
            random.fill_bytes(&mut arguments);
            if random.random() && len >= 8 {
                arguments[..8].copy_from_slice(fh.as_bytes());
            }
            let nodeid = [ROOT, inode(VolumeId(1)), random.random()][random.random_range(0..3)];
            let answer = server.ask_of(nodeid, code, 4, &arguments);
            let is_silent = [opcode::FORGET, opcode::BATCH_FORGET].contains(&code);
            assert_eq!(answer.is_none(), is_silent, "seed {seed}, {code}, {len}");
        }
    }
}

#[test]
fn a_request_that_says_another_length_than_it_has_is_dropped() {
    let server = Server::new();
    let mut frame = Frame::new();
    let header = InHeader {
        len: 41,
        opcode: opcode::GETATTR,
        ..InHeader::default()
    };
    assert!(frame.ask(&server.files, header.as_bytes()).is_none());
    for len in 0..40 {
        assert!(
            frame
                .ask(&server.files, &header.as_bytes()[..len])
                .is_none()
        );
    }
}

#[test]
fn sizes_beyond_what_came_or_fits_are_clipped_or_refused() {
    let mut server = Server::new();
    let fh = server.open(2);
    let (error, body) = server.read_at(fh, 0, u32::MAX);
    assert_eq!((error, body.len()), (0, REQUEST_BYTES_MAX));
    assert_eq!(server.read_at(fh, u64::MAX, 4096), (0, Vec::new()));
    assert_eq!(server.read_at(fh ^ 1 << 32, 0, 1).0, -libc::EBADF);
    assert_eq!(server.read_at(u64::MAX, 0, 1).0, -libc::EBADF);
    let write = |offset, size, data: &[u8]| {
        let wanted = WriteIn {
            fh,
            offset,
            size,
            ..WriteIn::default()
        };
        [wanted.as_bytes(), data].concat()
    };
    let long = write(0, 4096, &[1; 4095]);
    assert_eq!(
        server.ask(opcode::WRITE, 4, &long).unwrap().0,
        -libc::EINVAL
    );
    let far = write(u64::MAX, 1, &[1]);
    assert_eq!(server.ask(opcode::WRITE, 4, &far).unwrap().0, -libc::ENOSPC);
    let punch = FallocateIn {
        fh,
        offset: u64::MAX,
        length: 2,
        mode: 3,
        padding: 0,
    };
    let answer = server.ask(opcode::FALLOCATE, 4, punch.as_bytes());
    assert_eq!(answer.unwrap().0, -libc::EFBIG);
    let seek = LseekIn {
        fh,
        offset: u64::MAX,
        whence: libc::SEEK_DATA.cast_unsigned(),
        padding: 0,
    };
    let answer = server.ask(opcode::LSEEK, 4, seek.as_bytes());
    assert_eq!(answer.unwrap().0, -libc::ENXIO);
    let endless = server.ask_of(ROOT, opcode::LOOKUP, 4, &[b'v'; 8192]);
    assert_eq!(endless.unwrap().0, -libc::EINVAL);
    assert_eq!(server.volume.allocated_bytes(), 0);
}

#[test]
fn a_panic_answers_eio_with_the_requests_number() {
    let mut server = Server::new();
    let fh = server.open(2);
    server.volume.panics.store(true, SeqCst);
    let wanted = WriteIn {
        fh,
        size: 1,
        ..WriteIn::default()
    };
    let request = [wanted.as_bytes(), &[1]].concat();
    let answer = server.ask(opcode::WRITE, 4, &request);
    assert_eq!(answer, Some((-libc::EIO, Vec::new())));
    server.volume.panics.store(false, SeqCst);
    assert_eq!(server.ask(opcode::WRITE, 6, &request).unwrap().0, 0);
}

#[test]
fn a_successor_takes_the_holds_of_open_files_and_knows_their_handles() {
    let mut server = Server::new();
    let (first, second) = (server.open(2), server.open(4));
    assert_eq!(server.volume.holds(), 2);
    server.volume.write_at(&[5; 10], 0).unwrap();
    server.release(6, first);
    let mut server = server.successor();
    assert_eq!(server.volume.holds(), 1);
    assert_eq!(server.read_at(second, 0, 10), (0, vec![5; 10]));
    assert_eq!(server.read_at(first, 0, 10).0, -libc::EBADF);
    // A new file gets the handle of neither.
    let third = server.open(8);
    assert!(third != first && third != second);
    server.release(10, second);
    server.release(12, third);
    assert_eq!(server.volume.holds(), 0);
    assert_eq!(server.successor().volume.holds(), 0);
}

#[test]
fn what_comes_again_opens_and_closes_once() {
    let mut server = Server::new();
    let first = server.open(2);
    let mut server = server.successor();
    assert_eq!(server.open(2 | UNIQUE_RESEND), first);
    assert_eq!(server.volume.holds(), 1);
    // A request that the dead process had not served yet.
    let other = server.open(4 | UNIQUE_RESEND);
    assert_ne!(other, first);
    assert_eq!(server.volume.holds(), 2);
    server.release(6, other);
    let mut server = server.successor();
    server.release(6 | UNIQUE_RESEND, other);
    assert_eq!(server.volume.holds(), 1);
    server.release(8, first);
    assert_eq!(server.volume.holds(), 0);
}

#[test]
fn a_file_whose_volume_is_gone_stays_dead_and_harms_no_other() {
    let mut server = Server::new();
    let first = server.open(2);
    let other = server.pool.create("other", MIB);
    // Not through the pool of this process, which would refuse.
    let memfd = server
        .handover_state
        .descriptor()
        .try_clone_to_owned()
        .unwrap();
    drop(server.files);
    server.pool.remove(&server.volume);
    let handover_state = HandoverState::adopt(memfd).unwrap();
    server.files = VolumeFiles::new(
        server.pool.clone(),
        OwnOpens::default(),
        handover_state.records().clone(),
    );
    assert_eq!(server.read_at(first, 0, 10).0, -libc::EBADF);
    server.release(4, first);
    assert_eq!(other.holds(), 0);
}
