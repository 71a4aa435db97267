use super::*;
use crate::base::BLOCK_BYTES;
use crate::device::{Effect, Fault, FaultyDevice, Lasting, MemoryDevice, Operation};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: [u8; BLOCK_BYTES] = [1; BLOCK_BYTES];

fn failing_once(operation: Operation, errno: i32) -> (FailStopDevice, Arc<MemoryDevice>) {
    let memory = Arc::new(MemoryDevice::new(1 << 20));
    let faulty = FaultyDevice::new(memory.clone());
    faulty.inject(Fault {
        operation,
        nth: 1,
        lasting: Lasting::Once,
        effect: Effect::Errno(errno),
    });
    let latched = FailStopDevice::new(Arc::new(faulty));
    latched.map_log(0, 8192).unwrap();
    (latched, memory)
}

fn changes(device: &FailStopDevice) -> [Result<()>; 6] {
    [
        device.write_at(&BLOCK, 8192),
        device.write_vectored_at(&[IoSlice::new(&BLOCK)], 8192),
        device.store_log(0, &[1]),
        device.flush(),
        device.discard(8192, 4096),
        device.grow(2 << 20),
    ]
}

fn assert_stopped(device: &FailStopDevice, memory: &MemoryDevice, action: &str, errno: i32) {
    let before = memory.snapshot_image();
    for change in changes(device)
        .into_iter()
        .chain([Err(device.error().unwrap())])
    {
        let Err(Error::FailStopped {
            action: first,
            source,
        }) = change
        else {
            panic!("{change:?} after a failed {action}");
        };
        assert_eq!((first, source.raw_os_error()), (action, Some(errno)));
    }
    assert!(
        memory.snapshot_image() == before,
        "a stopped device was changed"
    );
    device.read_at(&mut [0; BLOCK_BYTES], 8192).unwrap();
}

fn assert_running(device: &FailStopDevice) {
    assert!(device.error().is_none());
    for change in changes(device) {
        change.unwrap();
    }
}

#[test]
fn a_failed_write_stops_every_later_change_but_no_read() {
    let (device, memory) = failing_once(Operation::Write, libc::EIO);
    let error = device.write_at(&BLOCK, 8192).unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }),
        "the failed call itself says what failed"
    );
    assert_stopped(&device, &memory, "write", libc::EIO);
    assert_eq!((memory.writes(), memory.flushes()), (0, 0));
}

#[test]
fn a_failed_vectored_write_stops_too() {
    let (device, memory) = failing_once(Operation::Write, libc::EIO);
    device
        .write_vectored_at(&[IoSlice::new(&BLOCK)], 8192)
        .unwrap_err();
    assert_stopped(&device, &memory, "write", libc::EIO);
}

#[test]
fn a_failed_store_stops_every_later_change() {
    let (device, memory) = failing_once(Operation::Store, libc::EIO);
    device.store_log(0, &[1]).unwrap_err();
    assert_stopped(&device, &memory, "write to the log", libc::EIO);
}

#[test]
fn a_store_without_room_on_the_host_is_an_error_and_stops_nothing() {
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        let (device, _) = failing_once(Operation::Store, errno);
        let error = device.store_log(0, &[1]).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert_running(&device);
    }
}

#[test]
fn a_failed_flush_stops_even_for_want_of_room_and_is_never_tried_again() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let (device, memory) = failing_once(Operation::Flush, errno);
        device.write_at(&BLOCK, 8192).unwrap();
        device.flush().unwrap_err();
        assert_stopped(&device, &memory, "flush", errno);
        assert_eq!(memory.flushes(), 0);
    }
}

#[test]
fn a_write_without_room_on_the_host_is_answered_and_stops_nothing() {
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        let (device, _) = failing_once(Operation::Write, errno);
        let error = device.write_at(&BLOCK, 8192).unwrap_err();
        assert!(matches!(error, Error::Io { .. }));
        assert_eq!(error.errno(), libc::ENOSPC);
        assert_running(&device);

        let (device, _) = failing_once(Operation::Write, errno);
        device
            .write_vectored_at(&[IoSlice::new(&BLOCK)], 8192)
            .unwrap_err();
        assert_running(&device);
    }
}

#[test]
fn a_failed_read_or_discard_stops_nothing() {
    let (device, _) = failing_once(Operation::Read, libc::EIO);
    device.read_at(&mut [0; BLOCK_BYTES], 0).unwrap_err();
    assert_running(&device);
    let (device, _) = failing_once(Operation::Discard, libc::EIO);
    device.discard(0, 4096).unwrap_err();
    assert_running(&device);
}

#[test]
fn the_first_failure_is_the_one_that_is_told() {
    let memory: Arc<dyn Device> = Arc::new(MemoryDevice::new(1 << 20));
    let device = FailStopDevice::new(memory);
    device.stop(
        "flush",
        &Error::io("flush", io::Error::from_raw_os_error(libc::EIO)),
    );
    device.stop("write", &Error::ReadOnly);
    assert!(matches!(
        device.error(),
        Some(Error::FailStopped {
            action: "flush",
            ..
        })
    ));
}

/// Reports a failed write-back to one flush only, as a kernel does, and is slow to report it.
struct ForgetfulHost {
    memory: MemoryDevice,
    flushes: AtomicU64,
}

impl Device for ForgetfulHost {
    fn len_bytes(&self) -> u64 {
        self.memory.len_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.memory.read_at(buf, offset_bytes)
    }
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.memory.write_at(buf, offset_bytes)
    }
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.memory.write_vectored_at(bufs, offset_bytes)
    }
    fn flush(&self) -> Result<()> {
        if self.flushes.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        Err(Error::io("flush", io::Error::from_raw_os_error(libc::EIO)))
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.memory.discard(offset_bytes, len_bytes)
    }
    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.memory.grow(len_bytes)
    }
    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.memory.map_log(offset_bytes, len_bytes)
    }
    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.memory.store_log(offset_bytes, bytes)
    }
    fn host_bytes(&self) -> Result<u64> {
        self.memory.host_bytes()
    }
}

#[test]
fn no_flush_succeeds_beside_one_that_was_told_of_lost_data() {
    let host = ForgetfulHost {
        memory: MemoryDevice::new(1 << 20),
        flushes: AtomicU64::new(0),
    };
    let device = FailStopDevice::new(Arc::new(host));
    let together = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                together.wait();
                device.flush().unwrap_err();
            });
        }
    });
}

#[test]
fn the_alarm_goes_off_once_and_before_the_failure_is_answered() {
    let (device, _) = failing_once(Operation::Flush, libc::EIO);
    let device = Arc::new(device);
    let alarms = Arc::new(AtomicU64::new(0));
    let (count, stopped) = (alarms.clone(), Arc::downgrade(&device));
    device.on_failure(Box::new(move || {
        assert!(stopped.upgrade().unwrap().error().is_some());
        count.fetch_add(1, Ordering::SeqCst);
    }));
    device.write_at(&BLOCK, 8192).unwrap();
    assert_eq!(alarms.load(Ordering::SeqCst), 0);
    for _ in 0..3 {
        device.flush().unwrap_err();
    }
    assert_eq!(alarms.load(Ordering::SeqCst), 1);
}
