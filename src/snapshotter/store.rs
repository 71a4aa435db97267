//! The snapshots: what each call does.

use super::Options;
use super::service::Snapshots;
use super::wire::{
    CleanupRequest, CommitRequest, Empty, InfoResponse, KeyRequest, ListRequest, ListResponse,
    MountsResponse, PrepareRequest, UpdateRequest, UsageResponse,
};
use crate::container::{Host, Result as HostResult};
use std::sync::Arc;
use tonic::{Request, Status};

/// The snapshots of one pool.
pub(super) struct Store {
    host: Arc<Host>,
    options: Options,
}

impl Store {
    pub(super) fn open(host: Arc<Host>, options: Options) -> HostResult<Self> {
        Ok(Self { host, options })
    }

    pub(super) fn stop(&self) {
        tracing::debug!(pool = ?self.host.pool().uuid(), mounts = self.options.mounts.as_str(), "no more calls");
    }
}

fn not_yet<T>() -> Result<T, Status> {
    Err(Status::unimplemented("this call is not there yet"))
}

impl Snapshots for Store {
    fn prepare(&self, _: Request<PrepareRequest>) -> Result<MountsResponse, Status> {
        not_yet()
    }
    fn view(&self, _: Request<PrepareRequest>) -> Result<MountsResponse, Status> {
        not_yet()
    }
    fn mounts(&self, _: Request<KeyRequest>) -> Result<MountsResponse, Status> {
        not_yet()
    }
    fn commit(&self, _: Request<CommitRequest>) -> Result<Empty, Status> {
        not_yet()
    }
    fn remove(&self, _: Request<KeyRequest>) -> Result<Empty, Status> {
        not_yet()
    }
    fn stat(&self, _: Request<KeyRequest>) -> Result<InfoResponse, Status> {
        not_yet()
    }
    fn update(&self, _: Request<UpdateRequest>) -> Result<InfoResponse, Status> {
        not_yet()
    }
    fn list(&self, _: Request<ListRequest>) -> Result<Vec<ListResponse>, Status> {
        not_yet()
    }
    fn usage(&self, _: Request<KeyRequest>) -> Result<UsageResponse, Status> {
        not_yet()
    }
    fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Empty, Status> {
        not_yet()
    }
}
