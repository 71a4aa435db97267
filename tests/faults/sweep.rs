//! One run: the workload on a device with one fault, and the check of the resulting state.

use crate::model::{Model, Seen};
use crate::workload::{Op, POOL_BYTES, is_refusal, operations};
use cowshed_check::{CheckOptions, FindingKind, check};
use cowshed_engine::{CreateOptions, MetadataCopies, OpenOptions, Pool, PoolState};
use cowshed_format::base::{Error, Name};
use cowshed_format::device::{DeviceImage, Fault, FaultyDevice, Lasting, MemoryDevice, Operation};
use std::sync::Arc;

/// The smallest log, so that it fills up.
const LOG_BYTES: u64 = 64 << 10;

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 64 << 10,
        background: false,
        ..OpenOptions::default()
    }
}

/// Returns how often the workload of `seed` calls `operation` when nothing fails.
pub(crate) fn calls(seed: u64, operation: Operation) -> u64 {
    let mut run = Run::new(seed, None);
    run.work();
    run.faulty.calls(operation)
}

/// A running workload.
pub(crate) struct Run {
    seed: u64,
    fault: Option<Fault>,
    memory: Arc<MemoryDevice>,
    faulty: Arc<FaultyDevice>,
    pool: Option<Pool>,
    model: Model,
    /// The states that a power cut may leave: those since the last acknowledged barrier.
    since: Vec<Model>,
}

impl Run {
    pub(crate) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let memory = Arc::new(MemoryDevice::recording(POOL_BYTES[0]));
        let create = CreateOptions {
            log_bytes: Some(LOG_BYTES),
            force: false,
            metadata_copies: Some(MetadataCopies::Two),
        };
        Pool::create(&*memory, &create).unwrap();
        let faulty = Arc::new(FaultyDevice::new(memory.clone()));
        if let Some(fault) = fault {
            faulty.inject(fault);
        }
        let mut run = Self {
            seed,
            fault,
            memory,
            faulty,
            pool: None,
            model: Model::default(),
            since: vec![Model::default()],
        };
        run.open();
        run
    }

    /// Runs the whole workload; returns true if the fault occurred.
    pub(crate) fn finish(mut self) -> bool {
        self.work();
        let failures = self.faulty.failures();
        self.faulty.heal();
        if self.pool().status().unwrap().state != PoolState::Stopped {
            self.goes_on();
        }
        let seen = Seen::of(&self.pool()).unwrap_or_else(|why| self.fail(&why));
        if let Some(why) = self.model.difference(&seen) {
            self.fail(&format!("alive: {why}"));
        }
        drop(self.pool.take());
        let recording = self.memory.recorded().unwrap();
        let image = recording.crash_image(recording.epochs.len(), []);
        self.verify("after a power cut", image, &self.since);
        let image = self.memory.snapshot_image();
        self.verify("after its process died", image, &[self.model.clone()]);
        failures > 0
    }

    fn fail(&self, what: &str) -> ! {
        panic!(
            "seed {}, {:?}: {what} (repeat with COWSHED_TEST_SEED={} COWSHED_TEST_ROUNDS=1)",
            self.seed, self.fault, self.seed
        )
    }

    fn pool(&self) -> Pool {
        self.pool.clone().expect("the pool is open")
    }

    fn work(&mut self) {
        for op in operations(self.seed) {
            if !op.makes_sense(&self.model) {
                continue;
            }
            let mut blurred = self.model.clone();
            op.blur(&mut blurred);
            self.since.push(blurred.clone());
            let before = self.faulty.failures();
            let outcome = match &op {
                Op::Reopen(close) => self.reopen(*close),
                op => op.run(&self.pool()),
            };
            match &outcome {
                Ok(()) => op.apply(&mut self.model),
                Err(error) => {
                    self.judge(&op, error);
                    self.model = blurred;
                }
            }
            if outcome.is_ok() && op.is_barrier() {
                self.since.clear();
            }
            self.since.push(self.model.clone());
            if self.faulty.failures() > before && !matches!(op, Op::Reopen(_)) {
                self.stops_or_not();
            }
        }
    }

    /// An error must report what the device returned, and nothing untrue.
    fn judge(&self, op: &Op, error: &Error) {
        let Some(fault) = self.fault else {
            self.fail(&format!("{op:?}: {error}"));
        };
        let (cowshed_format::device::Effect::Errno(errno)
        | cowshed_format::device::Effect::Short(errno)) = fault.effect;
        if is_refusal(error) || error.errno() != errno || self.faulty.failures() == 0 {
            self.fail(&format!("{op:?} answers: {error}"));
        }
    }

    /// A failed change stops the pool, and each later call reports that; another failure does not.
    fn stops_or_not(&mut self) {
        let fault = self.fault.expect("something has failed");
        let (cowshed_format::device::Effect::Errno(errno)
        | cowshed_format::device::Effect::Short(errno)) = fault.effect;
        let stops = match fault.operation {
            Operation::Flush => true,
            Operation::Write | Operation::Store => errno != libc::ENOSPC,
            Operation::Read | Operation::Discard | Operation::Grow => false,
        };
        let pool = self.pool();
        if (pool.status().unwrap().state == PoolState::Stopped) != stops {
            self.fail(&format!("it stopped or did not: {stops} was expected"));
        }
        if !stops {
            return;
        }
        let name = Name::new("late").unwrap();
        let answers = [
            pool.flush(),
            pool.checkpoint(),
            pool.reclaim(),
            pool.trim().map(drop),
            pool.create_volume(&name, 4096).map(drop),
        ];
        let writes = self.model.volumes.keys().map(|name| {
            let volume = pool.volume(name).unwrap();
            if volume.is_frozen() {
                pool.remove(&volume)
            } else {
                volume.write_at(&[1; 4096], 0)
            }
        });
        for answer in answers.into_iter().chain(writes) {
            match answer {
                Err(Error::FailStopped { source, .. }) if source.raw_os_error() == Some(errno) => {}
                other => self.fail(&format!("a stopped pool answers {other:?}")),
            }
        }
    }

    fn reopen(&mut self, close: bool) -> cowshed_format::base::Result<()> {
        let pool = self.pool.take().expect("the pool is open");
        if close && let Err(error) = pool.close() {
            self.judge(&Op::Reopen(close), &error);
        }
        drop(pool);
        self.open();
        Ok(())
    }

    /// Opens the pool; if the fault prevents that, opens it again on the repaired device.
    fn open(&mut self) {
        let open = |device: &Arc<FaultyDevice>| Pool::open(device.clone(), &options());
        let mut pool = open(&self.faulty);
        if let Err(error) = &pool {
            self.judge(&Op::Reopen(false), error);
            if self
                .fault
                .is_some_and(|fault| fault.lasting == Lasting::Forever)
            {
                self.faulty.heal();
            }
            pool = open(&self.faulty);
        }
        self.pool = Some(pool.unwrap_or_else(|error| self.fail(&format!("opening: {error}"))));
    }

    /// On a device that works again, a pool that has not stopped works again.
    fn goes_on(&mut self) {
        let pool = self.pool();
        let outcome = (|| {
            let volume = pool.create_volume(&Name::new("late")?, 1 << 20)?;
            volume.write_at(&[7; 70_000], 0)?;
            pool.checkpoint()?;
            pool.remove(&volume)?;
            pool.reclaim()
        })();
        if let Err(error) = outcome {
            self.fail(&format!("healed, but: {error}"));
        }
        self.since = vec![self.model.clone()];
    }

    /// The remaining pool must open, pass the check, equal one of `allowed`, and be usable.
    fn verify(&self, when: &str, image: DeviceImage, allowed: &[Model]) {
        let device = Arc::new(MemoryDevice::from_image(image));
        self.check(when, &device);
        let open = |device: &Arc<MemoryDevice>| {
            Pool::open(device.clone(), &options())
                .unwrap_or_else(|error| self.fail(&format!("{when}: {error}")))
        };
        let pool = open(&device);
        let seen = Seen::of(&pool).unwrap_or_else(|why| self.fail(&format!("{when}: {why}")));
        let differences: Vec<_> = allowed
            .iter()
            .map(|model| model.difference(&seen))
            .collect();
        if differences.iter().all(Option::is_some) {
            self.fail(&format!("{when}: {:?}", differences.last()));
        }
        let volume = pool
            .create_volume(&Name::new("afterwards").unwrap(), 1 << 20)
            .unwrap();
        volume.write_at(&[9; 50_000], 100).unwrap();
        pool.remove(&volume).unwrap();
        pool.close().unwrap();
        drop((volume, pool));
        self.check(&format!("{when}, used and closed"), &device);
    }

    fn check(&self, when: &str, device: &MemoryDevice) {
        let options = CheckOptions {
            deep: true,
            repair: false,
            forget: false,
        };
        let report = check(device, options, &mut |_| {})
            .unwrap_or_else(|error| self.fail(&format!("{when}: {error}")));
        // A stop during the first write of a slot leaves one of its two copies empty.
        let found = report.findings.iter();
        let mut found = found.filter(|each| each.kind != FindingKind::SuperblockUnreadable);
        if let Some(finding) = found.next() {
            self.fail(&format!("{when}: {finding}"));
        }
    }
}
