//! A log that is not empty: whole, torn and damaged.

use super::*;
use cowshed_format::base::Sequence;
use cowshed_format::operation::{Operation, Run};

fn write_of(addr: BlockAddr, crc: u32) -> Operation {
    Operation::Write {
        volume: VolumeId(1),
        first: BlockIndex(0),
        runs: vec![Run {
            addr: Some(addr),
            count: 1,
        }],
        crcs: vec![crc],
    }
}

#[test]
fn a_live_log_is_a_note_and_its_torn_end_too() {
    let (mut pool, [_, base, ..]) = forest();
    let there = pool.path(base, 3)[3];
    pool.append(9, 8, &[write_of(there.addr(), there.crc())]);
    pool.append(
        10,
        9,
        &[Operation::Freeze {
            volume: VolumeId(base),
        }],
    );
    pool.append(11, 9, &[write_of(there.addr(), !there.crc())]);
    pool.append(
        12,
        9,
        &[Operation::Freeze {
            volume: VolumeId(base),
        }],
    );
    let report = assert_clean(&pool.finish());
    let unfinished = Note::UnfinishedWrite(Sequence(11));
    assert_eq!(report.notes, [unfinished, Note::LogToReplay { records: 2 }]);
}

#[test]
fn a_record_that_was_flushed_and_is_damaged_is_no_end_of_the_log() {
    for (durable, damaged) in [(8, false), (9, false), (10, true)] {
        let (mut pool, [_, base, ..]) = forest();
        let freeze = [Operation::Freeze {
            volume: VolumeId(base),
        }];
        pool.append(9, 8, &freeze);
        let second = pool.log.len();
        pool.append(10, 8, &freeze);
        pool.append(11, durable, &freeze);
        pool.log[second + 41] ^= 1;
        let report = check_deep(&pool.finish());
        let found = report.findings.iter().map(|each| (each.kind, each.place));
        let expected = (FindingKind::LogDamaged, Place::Log(Sequence(10)));
        assert_eq!(
            found.collect::<Vec<_>>(),
            if damaged { vec![expected] } else { vec![] }
        );
    }
}
