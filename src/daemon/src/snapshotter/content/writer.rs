//! Writing a blob to containerd.

use super::{Contents, Failure, MESSAGES_AHEAD, calls, is_locked};
use crate::snapshotter::cancel::Cancel;
use crate::snapshotter::content_wire::{WriteAction, WriteRequest, WriteResponse};
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// The number of bytes sent in one message.
const PIECE_BYTES: usize = 1 << 20;
/// Number of messages that may be without a reply.
const UNANSWERED_MAX: usize = 4;
/// The time to wait for a ref that another writer holds: a writer that was killed releases it soon.
const LOCKED_TIME: Duration = Duration::from_secs(10);
/// The interval of the retries meanwhile.
const LOCKED_RETRY: Duration = Duration::from_millis(50);

/// Writes a blob under a ref from the start, regardless of what an earlier writer left there.
pub(in crate::snapshotter) struct BlobWriter {
    requests: mpsc::Sender<WriteRequest>,
    answers: mpsc::Receiver<Result<WriteResponse, Status>>,
    /// The bytes not sent yet.
    buffer: Vec<u8>,
    sent_bytes: i64,
    answered_bytes: i64,
    unanswered: usize,
    failure: Failure,
    cancel: Cancel,
}

impl Contents {
    /// Starts to write under `reference`.
    ///
    /// # Errors
    /// `Unavailable` when another writer holds the ref for too long, or any error of containerd.
    pub(in crate::snapshotter) fn write(&self, reference: &str) -> Result<BlobWriter, Status> {
        let deadline = Instant::now() + LOCKED_TIME;
        loop {
            match self.open_writer(reference) {
                Err(status) if is_locked(&status) && Instant::now() < deadline => {
                    self.cancel.check()?;
                    thread::sleep(LOCKED_RETRY);
                }
                opened => return opened,
            }
        }
    }

    fn open_writer(&self, reference: &str) -> Result<BlobWriter, Status> {
        let (requests, outgoing) = mpsc::channel(MESSAGES_AHEAD);
        let (incoming, answers) = mpsc::channel(MESSAGES_AHEAD);
        let contents = self.clone();
        self.runtime.spawn(async move {
            let moved = tokio::select! {
                moved = contents.exchange(outgoing, &incoming) => moved,
                () = contents.cancel.cancelled() => Err(Cancel::status()),
            };
            if let Err(status) = moved {
                // A writer that is gone does not need the error.
                let _ = incoming.send(Err(status)).await;
            }
        });
        let mut writer = BlobWriter {
            requests,
            answers,
            buffer: Vec::with_capacity(PIECE_BYTES),
            sent_bytes: 0,
            answered_bytes: 0,
            unanswered: 0,
            failure: Failure::default(),
            cancel: self.cancel.clone(),
        };
        writer.send(WriteRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            ..WriteRequest::default()
        })?;
        // The first bytes truncate the data that it reports as written before.
        writer.answer()?;
        Ok(writer)
    }

    async fn exchange(
        &self,
        outgoing: mpsc::Receiver<WriteRequest>,
        incoming: &mpsc::Sender<Result<WriteResponse, Status>>,
    ) -> Result<(), Status> {
        let request = self.request(ReceiverStream::new(outgoing));
        let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
        let path = PathAndQuery::from_static(calls::WRITE);
        let mut grpc = self.grpc().await?;
        let answers = grpc.streaming(request, path, codec).await?;
        let mut answers = answers.into_inner();
        while let Some(answer) = answers.message().await? {
            if incoming.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl BlobWriter {
    /// Writes the rest and puts the blob into the store, which may have it already.
    ///
    /// # Errors
    /// `FailedPrecondition` when the store computed another digest or size, or any error of
    /// containerd.
    pub(in crate::snapshotter) fn commit(
        mut self,
        digest: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        self.send_buffer()?;
        while self.unanswered > 0 {
            self.write_answer()?;
        }
        let committed = self.send(WriteRequest {
            action: WriteAction::Commit.into(),
            total: self.sent_bytes,
            offset: self.sent_bytes,
            expected: digest.to_owned(),
            labels,
            ..WriteRequest::default()
        });
        match committed.and_then(|()| self.answer()) {
            Ok(answer) if answer.digest == digest => Ok(()),
            Ok(answer) => {
                let theirs = answer.digest;
                let why = format!("containerd stored {theirs} when {digest} was written");
                Err(Status::data_loss(why))
            }
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Returns the place where the reason appears if writing fails.
    pub(in crate::snapshotter) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    fn send_buffer(&mut self) -> Result<(), Status> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let next = Vec::with_capacity(PIECE_BYTES);
        let data = Bytes::from(std::mem::replace(&mut self.buffer, next));
        let offset = self.sent_bytes;
        let len = i64::try_from(data.len()).unwrap_or(i64::MAX);
        self.send(WriteRequest {
            action: WriteAction::Write.into(),
            offset,
            data,
            ..WriteRequest::default()
        })?;
        self.sent_bytes = offset.saturating_add(len);
        self.unanswered += 1;
        while self.unanswered > UNANSWERED_MAX {
            self.write_answer()?;
        }
        Ok(())
    }

    fn write_answer(&mut self) -> Result<(), Status> {
        let answer = self.answer()?;
        self.unanswered -= 1;
        let (before, now) = (self.answered_bytes, answer.offset);
        let is_last = self.unanswered == 0;
        if now <= before || now > self.sent_bytes || (is_last && now != self.sent_bytes) {
            let sent = self.sent_bytes;
            let why = format!(
                "containerd reports {now} bytes written after {before}, when {sent} were sent"
            );
            return Err(Status::data_loss(why));
        }
        self.answered_bytes = now;
        Ok(())
    }

    fn send(&mut self, request: WriteRequest) -> Result<(), Status> {
        self.cancel.check()?;
        if self.requests.blocking_send(request).is_ok() {
            return Ok(());
        }
        // The stream has ended, and the reason for it is among the last replies.
        loop {
            self.answer()?;
        }
    }

    fn answer(&mut self) -> Result<WriteResponse, Status> {
        let answer = self.answers.blocking_recv();
        answer.unwrap_or_else(|| {
            Err(Status::unavailable(
                "containerd closed the stream during a write",
            ))
        })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= PIECE_BYTES
            && let Err(status) = self.send_buffer()
        {
            return Err(self.failure.keep("writing to containerd", status));
        }
        let len = bytes.len().min(PIECE_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The time at which pieces are sent does not matter.
        Ok(())
    }
}
