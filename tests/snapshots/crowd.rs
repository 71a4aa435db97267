//! Many clients at once.

use crate::client::{labels, refused};
use crate::place::{Place, Snapshotter, layer};
use std::sync::Barrier;
use tonic::Code;

const CLIENTS: usize = 12;

#[test]
fn clients_that_ask_at_once_get_each_its_own() {
    let snapshotter = Snapshotter::start("2G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let snapshotter = &snapshotter;
            scope.spawn(move || {
                let mut client = snapshotter.client();
                for round in 0..4 {
                    let name = format!("n-{number}-{round}");
                    let mount = client.prepare(&name, "base").unwrap();
                    let place = Place::mount(&snapshotter.bench, &mount, &name);
                    place.write("mine", &name);
                    place.unmount();
                    let image = format!("i-{number}-{round}");
                    client.commit(&image, &name).unwrap();
                    let view = client.view(&name, &image).unwrap();
                    let place = Place::mount(&snapshotter.bench, &view, &name);
                    assert_eq!(place.read("mine"), name);
                    place.unmount();
                    client.remove(&name).unwrap();
                    if round % 2 == 0 {
                        client.remove(&image).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(client.list(&[]).unwrap().len(), 1 + CLIENTS * 2);
    snapshotter.end(1 + CLIENTS * 2);
}

#[test]
fn of_many_that_want_one_key_one_gets_it() {
    let snapshotter = Snapshotter::start("1G");
    let mut client = snapshotter.client();
    layer(&snapshotter, &mut client, "base", "", "a");
    let start = Barrier::new(CLIENTS);
    let won: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (snapshotter, start) = (&snapshotter, &start);
                scope.spawn(move || {
                    let mut client = snapshotter.client();
                    // Connects before the others start.
                    client.stat("base").unwrap();
                    start.wait();
                    let fill = labels(&[("n", number.to_string().as_str())]);
                    let call = if number % 3 == 0 { "View" } else { "Prepare" };
                    match client.make(call, "one", "base", fill) {
                        Ok(_) => 1,
                        lost => {
                            refused(lost, Code::AlreadyExists);
                            0
                        }
                    }
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
    client.remove("one").unwrap();
    // Views come and go concurrently: none finds its mount removed.
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let snapshotter = &snapshotter;
            scope.spawn(move || {
                let mut client = snapshotter.client();
                for _ in 0..10 {
                    let key = format!("v-{number}");
                    let view = client.view(&key, "base").unwrap();
                    let place = Place::mount(&snapshotter.bench, &view, &key);
                    assert_eq!(place.read("a"), "base");
                    place.unmount();
                    client.remove(&key).unwrap();
                }
            });
        }
    });
    snapshotter.end(1);
}
