//! A pod as a kubelet requests it: containerd's CRI plugin with cowshed's snapshots.
//!
//! The pod uses the host's network, for which no plugin is needed. The messages contain only the
//! few fields of `runtime.v1` that the calls need.

use crate::containerd::Containerd;
use crate::harness::eventually;
use crate::images::{self, Image, PAUSE};
use crate::sandbox::control_group;
use crate::world::{Setting, Snapshotter, World};
use nix::sys::statvfs::statvfs;
use prost::Message;
use std::path::Path;
use tokio::runtime::{Builder, Runtime};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// The namespace of the kubelet's images and containers.
const NAMESPACE: &str = "k8s.io";
/// The size of the pool; the size that `statfs` reports may be up to a tenth less.
const POOL_BYTES: u64 = 40 << 30;

/// Runs a pod with a container, and gets the file system of the images.
pub(crate) fn runs_pods(setting: &Setting) {
    if setting.snapshotter != Snapshotter::Cowshed {
        println!("the plugin is configured for cowshed alone");
        return;
    }
    let world = World::open(setting);
    let pause = Image::new(setting.folder.join("pause"))
        .named(PAUSE)
        .running(&["/bin/sleep", "1000"])
        .filled(images::shell_root)
        .write();
    let ctr = &world.containerd;
    let mut import = ctr.ctr([
        "--namespace",
        NAMESPACE,
        "images",
        "import",
        "--snapshotter",
    ]);
    import.arg(ctr.snapshotter).arg(&pause);
    crate::fixtures::output(&mut import);
    let mut kubelet = Kubelet::connect(&Containerd::socket(&setting.folder));
    eventually("the image, for the plugin", || {
        let listed: ListImagesResponse = kubelet.image("ListImages", Nothing {});
        !listed.images.is_empty()
    });
    let sandbox = sandbox(&setting.folder);
    let pod: Id = kubelet.runtime(
        "RunPodSandbox",
        RunPodSandbox {
            config: Some(sandbox.clone()),
        },
    );
    let create = CreateContainer {
        pod_sandbox_id: pod.id.clone(),
        config: Some(container()),
        sandbox_config: Some(sandbox),
    };
    let container: Id = kubelet.runtime("CreateContainer", create);
    let _: Nothing = kubelet.runtime("StartContainer", container.clone());
    let exec = |script: &str| ExecSync {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-euc", script].map(str::to_owned).to_vec(),
        timeout: 20,
    };
    let said: ExecSyncResponse =
        kubelet.runtime("ExecSync", exec("echo in a pod > /new; cat /new"));
    assert_eq!((said.exit_code, &*said.stdout), (0, &b"in a pod\n"[..]));
    the_file_system_of_the_images_is_the_pool(&mut kubelet, &setting.folder);
    let _: Nothing = kubelet.runtime("StopPodSandbox", pod.clone());
    let _: Nothing = kubelet.runtime("RemovePodSandbox", pod);
    let image = ImageSpec {
        image: PAUSE.to_owned(),
    };
    let _: Nothing = kubelet.image("RemoveImage", RemoveImage { image: Some(image) });
    world.clear();
    world.close();
}

/// Checks the numbers on which the kubelet bases evictions.
fn the_file_system_of_the_images_is_the_pool(kubelet: &mut Kubelet, folder: &Path) {
    // The plugin updates the usages every ten seconds.
    eventually("what the images take", || {
        let told: ImageFsInfo = kubelet.image("ImageFsInfo", Nothing {});
        let found = told.image_filesystems.iter().find(|file_system| {
            let mounted = file_system
                .fs_id
                .as_ref()
                .map(|id| Path::new(&id.mountpoint));
            mounted == Some(&folder.join("volumes"))
        });
        let found = found.unwrap_or_else(|| panic!("another file system: {told:?}"));
        found
            .used_bytes
            .as_ref()
            .is_some_and(|used| used.value > 1 << 20)
    });
    let seen = statvfs(&folder.join("volumes")).unwrap();
    let (size, free) = (
        seen.blocks() * seen.fragment_size(),
        seen.blocks_available() * seen.fragment_size(),
    );
    assert!(
        size > POOL_BYTES / 10 * 9 && size <= POOL_BYTES,
        "{size} bytes"
    );
    assert!(free < size, "{free} of {size} bytes are free");
}

fn sandbox(folder: &Path) -> PodSandboxConfig {
    let metadata = PodMetadata {
        name: "pod".to_owned(),
        uid: "uid".to_owned(),
        namespace: "default".to_owned(),
    };
    // The namespaces of the node.
    let namespaces = NamespaceOption { network: 2 };
    PodSandboxConfig {
        metadata: Some(metadata),
        log_directory: folder.join("logs").to_string_lossy().into_owned(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", control_group(folder)),
            security_context: Some(SecurityContext {
                namespace_options: Some(namespaces),
            }),
        }),
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "container".to_owned(),
        }),
        image: Some(ImageSpec {
            image: PAUSE.to_owned(),
        }),
        command: vec!["/bin/sleep".to_owned(), "1000".to_owned()],
    }
}

struct Kubelet {
    runtime: Runtime,
    grpc: Grpc<Channel>,
}

impl Kubelet {
    fn connect(socket: &Path) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self {
            runtime,
            grpc: Grpc::new(channel),
        }
    }

    fn runtime<Q, A>(&mut self, call: &str, message: Q) -> A
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        self.call(&format!("/runtime.v1.RuntimeService/{call}"), message)
    }

    fn image<Q, A>(&mut self, call: &str, message: Q) -> A
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        self.call(&format!("/runtime.v1.ImageService/{call}"), message)
    }

    fn call<Q, A>(&mut self, path: &str, message: Q) -> A
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = path.parse().unwrap();
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(Request::new(message), path.clone(), codec);
            let answer = answer
                .await
                .unwrap_or_else(|status| panic!("{path}: {status}"));
            answer.into_inner()
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A pod or a container, in requests and replies that contain nothing else.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct RemoveImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ImageFsInfo {
    #[prost(message, repeated, tag = "1")]
    image_filesystems: Vec<FilesystemUsage>,
}

#[derive(Clone, PartialEq, Message)]
struct FilesystemUsage {
    #[prost(message, optional, tag = "2")]
    fs_id: Option<FilesystemIdentifier>,
    #[prost(message, optional, tag = "3")]
    used_bytes: Option<UInt64Value>,
}

#[derive(Clone, PartialEq, Message)]
struct FilesystemIdentifier {
    #[prost(string, tag = "1")]
    mountpoint: String,
}

#[derive(Clone, PartialEq, Message)]
struct UInt64Value {
    #[prost(uint64, tag = "1")]
    value: u64,
}
