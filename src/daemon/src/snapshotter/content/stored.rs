//! Reading a blob from the file in which containerd's own content store keeps it.
//!
//! Reading the file saves sending the blob through a socket, which costs as much as unpacking it.
//! containerd does not promise this access: its introspection service tells where the store is, and
//! the layout of the store's files is known. So the reader must verify the digest, and where there
//! is no such file, the blob comes through the content service.

use super::{Contents, calls};
use crate::snapshotter::content_wire::{PluginsRequest, PluginsResponse};
use cowshed_oci::Digest;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use tonic::Code;

/// The plugin that holds the blobs.
const STORE: &str = "type==io.containerd.content.v1,id==content";

impl Contents {
    /// Returns the file that holds the blob of `size_bytes`, if there is one.
    pub(in crate::snapshotter) fn file(&self, digest: Digest, size_bytes: u64) -> Option<File> {
        let root = self.store_root()?;
        let hex = digest.hex();
        let path = root.join("blobs/sha256").join(hex);
        let open = || -> io::Result<Option<File>> {
            let file = File::options()
                .read(true)
                // Follows no symbolic link, and does not block on a FIFO or device.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)?;
            let found = file.metadata()?;
            Ok((found.is_file() && found.len() == size_bytes).then_some(file))
        };
        match open() {
            Ok(file) => file,
            Err(error) => {
                let path = path.display();
                tracing::debug!(
                    %error, %path,
                    "cannot read a blob's file: reading it through containerd"
                );
                None
            }
        }
    }

    /// Returns the folder where containerd keeps its blobs; containerd is asked once.
    fn store_root(&self) -> Option<PathBuf> {
        if let Some(known) = self.store.get() {
            return known.clone();
        }
        let filters = vec![STORE.to_owned()];
        let found = match self.unary(calls::PLUGINS, PluginsRequest { filters }) {
            Ok(PluginsResponse { mut plugins }) => plugins
                .first_mut()
                .and_then(|plugin| plugin.exports.remove("root"))
                .map(PathBuf::from)
                .filter(|root| root.is_absolute()),
            Err(error) if error.code() == Code::Unimplemented => None,
            Err(error) => {
                tracing::debug!(%error, "cannot find containerd's directory of blobs");
                return None;
            }
        };
        self.store.get_or_init(|| found).clone()
    }
}
