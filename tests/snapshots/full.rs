//! A pool without room says so, harms nothing, and goes on once there is room.

use crate::client::refused;
use crate::place::{Place, Snapshotter, layer};
use std::io::Write;
use tonic::Code;

#[test]
fn a_full_pool_refuses_a_commit_of_what_it_could_not_take_and_lets_things_be_removed() {
    let snapshotter = Snapshotter::start_with("128M", &["--snapshot-size", "1G"]);
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let mount = client.prepare("c", "base").unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "c");
    let mut file = std::fs::File::create(place.path("big")).unwrap();
    let mut noise = crate::harness::noise(1 << 20, 7);
    for round in 0..200_u8 {
        noise[0] = round;
        // The file system has room; its device has not, and that shows when it is written out.
        if file.write_all(&noise).is_err() {
            break;
        }
    }
    drop(file);
    refused(client.commit("image", "c"), Code::ResourceExhausted);
    refused(client.stat("image"), Code::NotFound);
    client.stat("c").unwrap();
    place.unmount();
    client.remove("c").unwrap();
    client.cleanup().unwrap();
    snapshotter.bench.ok(["pool", "checkpoint"]);
    // What was removed is settled in the background.
    let mut prepared = None;
    crate::harness::eventually("room for another", || {
        prepared = client.prepare("d", "base").ok();
        prepared.is_some()
    });
    let mount = prepared.unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, "d");
    assert_eq!(place.read("a"), "base");
    place.write("b", "2");
    place.unmount();
    client.commit("image", "d").unwrap();
    snapshotter.end(2);
}
