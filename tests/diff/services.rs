//! The other services of containerd that a content store's clients use: leases, and the
//! introspection of where plugins keep their data.

use crate::content_wire::{LeaseRequest, Plugin, PluginsRequest, PluginsResponse};
use crate::store::{Answer, Shared, unary};
use crate::wire::Empty;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Status};

#[derive(Clone)]
pub(crate) struct Leases(pub(crate) Shared);

impl NamedService for Leases {
    const NAME: &'static str = "containerd.services.leases.v1.Leases";
}

impl Service<http::Request<Body>> for Leases {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("/Create"), "{request:?}");
        let shared = Arc::clone(&self.0);
        unary(request, move |request: Request<LeaseRequest>| {
            let LeaseRequest { id, labels } = request.into_inner();
            shared.lock().unwrap().leases.insert(id, labels);
            Ok(Empty {})
        })
    }
}

#[derive(Clone)]
pub(crate) struct Introspection(pub(crate) Shared);

impl NamedService for Introspection {
    const NAME: &'static str = "containerd.services.introspection.v1.Introspection";
}

impl Service<http::Request<Body>> for Introspection {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("/Plugins"), "{request:?}");
        let shared = Arc::clone(&self.0);
        unary(request, move |request: Request<PluginsRequest>| {
            let wanted = "type==io.containerd.content.v1,id==content";
            assert_eq!(request.into_inner().filters, [wanted]);
            let root = shared.lock().unwrap().root.clone();
            let root = root.ok_or_else(|| Status::unimplemented("no such service"))?;
            let exports = [("root".to_owned(), root.to_str().unwrap().to_owned())];
            let exports = exports.into();
            let plugins = vec![Plugin { exports }];
            Ok(PluginsResponse { plugins })
        })
    }
}
