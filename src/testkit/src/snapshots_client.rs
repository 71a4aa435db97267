//! A client of the snapshots service that waits for each reply.

use cowshed_daemon::snapshotter::wire::{
    CleanupRequest, CommitRequest, Empty, FieldMask, Info, InfoResponse, KeyRequest, ListRequest,
    ListResponse, Mount, MountsResponse, PrepareRequest, UpdateRequest, UsageResponse,
};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";
/// The time for which a killed daemon may be away.
const AWAY_TIME: Duration = Duration::from_secs(60);

pub type Labels = BTreeMap<String, String>;

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub struct Client {
    runtime: Runtime,
    grpc: Grpc<Channel>,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address).unwrap();
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self {
            runtime,
            grpc: Grpc::new(channel),
        }
    }

    fn path(call: &str) -> PathAndQuery {
        format!("{SERVICE}{call}").parse().unwrap()
    }

    pub fn call<Q, A>(&mut self, call: &str, message: Q) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(Request::new(message), Self::path(call), codec);
            Ok(answer.await?.into_inner())
        })
    }

    /// Like `call`, but repeats while the daemon is away.
    pub fn persist<T>(
        &mut self,
        mut call: impl FnMut(&mut Self) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let deadline = Instant::now() + AWAY_TIME;
        loop {
            match call(self) {
                Err(status) if is_lost(&status) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                answer => return answer,
            }
        }
    }

    pub fn prepare(&mut self, key: &str, parent: &str) -> Result<Mount, Status> {
        self.prepare_with(key, parent, Labels::new())
    }

    pub fn prepare_with(
        &mut self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Mount, Status> {
        self.make("Prepare", key, parent, labels)
    }

    pub fn view(&mut self, key: &str, parent: &str) -> Result<Mount, Status> {
        self.make("View", key, parent, Labels::new())
    }

    pub fn make(
        &mut self,
        call: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Mount, Status> {
        let request = PrepareRequest {
            snapshotter: "cowshed".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        self.call(call, request).map(only)
    }

    pub fn mounts(&mut self, key: &str) -> Result<Mount, Status> {
        self.call("Mounts", request(key)).map(only)
    }

    pub fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, Labels::new(), "")
    }

    pub fn commit_with(
        &mut self,
        name: &str,
        key: &str,
        labels: Labels,
        parent: &str,
    ) -> Result<(), Status> {
        let request = CommitRequest {
            snapshotter: "cowshed".to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent: parent.to_owned(),
        };
        self.call::<_, Empty>("Commit", request).map(drop)
    }

    pub fn remove(&mut self, key: &str) -> Result<(), Status> {
        self.call::<_, Empty>("Remove", request(key)).map(drop)
    }

    pub fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let answer: InfoResponse = self.call("Stat", request(key))?;
        Ok(answer.info.unwrap())
    }

    pub fn update(&mut self, name: &str, labels: Labels, paths: &[&str]) -> Result<Info, Status> {
        let info = Info {
            name: name.to_owned(),
            parent: "not to be changed".to_owned(),
            labels,
            ..Info::default()
        };
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = UpdateRequest {
            snapshotter: "cowshed".to_owned(),
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        let answer: InfoResponse = self.call("Update", request)?;
        Ok(answer.info.unwrap())
    }

    pub fn usage(&mut self, key: &str) -> Result<UsageResponse, Status> {
        self.call("Usage", request(key))
    }

    pub fn cleanup(&mut self) -> Result<(), Status> {
        let snapshotter = "cowshed".to_owned();
        self.call::<_, Empty>("Cleanup", CleanupRequest { snapshotter })
            .map(drop)
    }

    pub fn list(&mut self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let request = ListRequest {
            snapshotter: "cowshed".to_owned(),
            filters: filters.iter().map(|text| (*text).to_owned()).collect(),
        };
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<ListRequest, ListResponse>::default();
            let request = Request::new(request);
            let answer = grpc.server_streaming(request, Self::path("List"), codec);
            let mut pages = answer.await?.into_inner();
            let mut infos = Vec::new();
            while let Some(page) = pages.message().await? {
                infos.extend(page.info);
            }
            Ok(infos)
        })
    }

    /// Returns the names that match, sorted.
    pub fn names(&mut self, filters: &[&str]) -> Vec<String> {
        let infos = self.list(filters).unwrap();
        let mut names: Vec<_> = infos.into_iter().map(|info| info.name).collect();
        names.sort();
        names
    }
}

fn request(key: &str) -> KeyRequest {
    KeyRequest {
        snapshotter: "cowshed".to_owned(),
        key: key.to_owned(),
    }
}

fn only(answer: MountsResponse) -> Mount {
    assert_eq!(answer.mounts.len(), 1, "{answer:?}");
    answer.mounts.into_iter().next().unwrap()
}

/// Returns true if the daemon went away before it replied: it may have done the call, or not.
pub fn is_lost(status: &Status) -> bool {
    let message = status.message();
    let broken = [
        "transport error",
        "h2 protocol error",
        "connection",
        "broken pipe",
    ];
    match status.code() {
        Code::Unavailable | Code::Cancelled => true,
        Code::Unknown | Code::Internal => broken.iter().any(|part| message.contains(part)),
        _ => false,
    }
}

/// Asserts that the call was refused with this code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) {
    match answer {
        Ok(answer) => panic!("{answer:?} instead of {code:?}"),
        Err(status) => assert_eq!(status.code(), code, "{status:?}"),
    }
}
