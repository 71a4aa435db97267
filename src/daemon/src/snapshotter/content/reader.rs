//! Reading a blob from containerd.

use super::{Contents, Failure, MESSAGES_AHEAD, calls};
use crate::snapshotter::cancel::Cancel;
use crate::snapshotter::content_wire::{ReadRequest, ReadResponse};
use prost::bytes::{Buf, Bytes};
use std::io::{self, Read};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

/// The bytes of a blob, in order; they are not verified here.
pub(in crate::snapshotter) struct BlobReader {
    pieces: mpsc::Receiver<Result<Bytes, Status>>,
    current: Bytes,
    failure: Failure,
}

impl Contents {
    /// Reads a blob from its beginning to its end.
    pub(in crate::snapshotter) fn read(&self, digest: &str) -> (BlobReader, Failure) {
        let (sender, pieces) = mpsc::channel(MESSAGES_AHEAD);
        let (contents, digest) = (self.clone(), digest.to_owned());
        self.runtime.spawn(async move {
            let fetched = tokio::select! {
                fetched = contents.fetch(digest, &sender) => fetched,
                () = contents.cancel.cancelled() => Err(Cancel::status()),
            };
            if let Err(status) = fetched {
                // A reader that is gone does not need the error.
                let _ = sender.send(Err(status)).await;
            }
        });
        let failure = Failure::default();
        let reader = BlobReader {
            pieces,
            current: Bytes::new(),
            failure: failure.clone(),
        };
        (reader, failure)
    }

    async fn fetch(
        &self,
        digest: String,
        pieces: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let request = self.request(ReadRequest {
            digest,
            offset: 0,
            size: 0,
        });
        let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
        let path = PathAndQuery::from_static(calls::READ);
        let mut grpc = self.grpc().await?;
        let stream = grpc.server_streaming(request, path, codec).await?;
        let mut stream = stream.into_inner();
        let mut offset = 0;
        while let Some(message) = stream.message().await? {
            if message.offset != offset {
                let theirs = message.offset;
                let why = format!("containerd sends bytes from {theirs} instead of {offset}");
                return Err(Status::data_loss(why));
            }
            offset += i64::try_from(message.data.len()).unwrap_or(i64::MAX);
            if pieces.send(Ok(message.data)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !buffer.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(status)) => {
                    return Err(self.failure.keep("reading from containerd", status));
                }
                None => return Ok(0),
            }
        }
        let len = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
