//! Docker's walk-through of storage drivers, and other common uses of images and containers.
//!
//! An image of four layers, a second one on it with one small layer, five containers of that, the
//! space of each, and then each operation of Docker on a snapshot: diff, commit, cp, save and load,
//! export and import, volumes, builds, and removal.

use crate::docker::Docker;
use crate::images::{self, Image};
use crate::world::{Mounts, Setting, Snapshotter, World};
use serde_json::Value;
use std::fs;
use std::path::Path;

const BASE: &str = "acme/base:1";
const MIDDLE: &str = "acme/my-base-image:1.0";
const FINAL: &str = "acme/my-final-image:1.0";
const CONTAINERS: [&str; 5] = ["one", "two", "three", "four", "five"];
/// The size of a file in the base image.
const LARGE: usize = 64 << 20;

pub(crate) fn through(setting: &Setting) {
    let world = World::open(setting);
    let docker = Docker::start(setting);
    let before = world.used_bytes();
    let walk = Walk {
        world: &world,
        docker: &docker,
        folder: &setting.folder,
        is_ours: setting.snapshotter == Snapshotter::Cowshed,
        copies_files: setting.snapshotter != Snapshotter::Cowshed
            || setting.mounts == Mounts::Overlay,
    };
    walk.two_images_share_their_layers();
    walk.five_containers_take_next_to_nothing();
    walk.one_byte_of_a_large_file_is_a_small_change();
    walk.a_diff_tells_what_changed();
    walk.a_running_container_is_committed();
    walk.files_are_copied_in_and_out();
    walk.images_are_saved_and_loaded();
    walk.a_container_is_exported_and_imported();
    walk.volumes_and_binds_outlive_their_containers();
    walk.a_build_uses_what_it_has_built();
    walk.containers_come_back_after_a_restart();
    walk.everything_is_removed();
    world.wait_until_empty();
    docker.stop();
    if let (Some(before), Some(after)) = (before, world.used_bytes()) {
        assert!(
            after < before + (8 << 20),
            "{after} bytes are used, and were {before}"
        );
    }
    world.close();
}

struct Walk<'a> {
    world: &'a World,
    docker: &'a Docker,
    folder: &'a Path,
    is_ours: bool,
    /// True if the first write to a file copies all of it.
    copies_files: bool,
}

impl Walk<'_> {
    fn two_images_share_their_layers(&self) {
        let docker = self.docker;
        let base = Image::new(self.folder.join("base"))
            .named(&format!("docker.io/{BASE}"))
            .filled(images::shell_root)
            .filled(|root| fs::write(root.join("large"), crate::harness::noise(LARGE, 3)).unwrap())
            .write();
        docker.ok(["load", "--input", base.to_str().unwrap()]);
        let context = self.folder.join("middle");
        fs::create_dir(&context).unwrap();
        fs::write(
            context.join("Dockerfile"),
            format!("FROM {BASE}\nCOPY page /page\nRUN echo made > /made\n"),
        )
        .unwrap();
        fs::write(context.join("page"), "hello\n").unwrap();
        docker.build(&context, MIDDLE);
        let used = self.world.used_bytes();
        let context = self.folder.join("final");
        fs::create_dir(&context).unwrap();
        fs::write(
            context.join("Dockerfile"),
            format!(
                "FROM {MIDDLE}\nCOPY hello.sh /hello.sh\nRUN chmod +x /hello.sh\nCMD /hello.sh\n"
            ),
        )
        .unwrap();
        fs::write(
            context.join("hello.sh"),
            "#!/bin/sh\necho \"Hello world\"\n",
        )
        .unwrap();
        docker.build(&context, FINAL);
        assert_eq!(
            docker.ok(["run", "--rm", "--network=none", FINAL]),
            "Hello world"
        );
        if let (Some(before), Some(after)) = (used, self.world.used_bytes()) {
            assert!(
                after < before + (2 << 20),
                "a small layer takes {} bytes",
                after - before
            );
        }
        let (middle, last) = (self.layers(MIDDLE), self.layers(FINAL));
        assert_eq!((middle.len(), last.len()), (4, 6));
        assert_eq!(
            middle[..],
            last[..4],
            "the second image does not stand on the first"
        );
        let listed = docker.ok(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        for image in [BASE, MIDDLE, FINAL] {
            assert!(
                listed.lines().any(|line| line == image),
                "{image} is not in {listed}"
            );
        }
        let steps = docker.ok([
            "history",
            "--no-trunc",
            "--format",
            "{{.CreatedBy}} {{.Size}}",
            FINAL,
        ]);
        for step in [
            "CMD",
            "chmod +x /hello.sh",
            "COPY hello.sh",
            "echo made",
            "COPY page",
        ] {
            assert!(steps.contains(step), "{step} is not in {steps}");
        }
    }

    fn layers(&self, image: &str) -> Vec<Value> {
        self.docker.inspect(image)["RootFS"]["Layers"]
            .as_array()
            .unwrap()
            .clone()
    }

    fn five_containers_take_next_to_nothing(&self) {
        let before = self.world.used_bytes();
        for name in CONTAINERS {
            self.docker.run_waiting(name, &[], FINAL);
        }
        if let (Some(before), Some(after)) = (before, self.world.used_bytes()) {
            let each = (after - before) / CONTAINERS.len() as u64;
            println!("a running container takes {} KiB of the pool", each >> 10);
            // Map nodes are written twice. An overlay has folders in a file system of its own.
            let enough = if self.copies_files { 512 } else { 256 };
            assert!(each < enough << 10, "each takes {each} bytes");
        }
        let table = self
            .docker
            .ok(["ps", "--size", "--format", "{{.Names}} {{.Size}}"]);
        println!("{table}");
        assert_eq!(table.lines().count(), CONTAINERS.len());
        assert!(
            table.lines().all(|line| line.contains("(virtual ")),
            "{table}"
        );
    }

    fn one_byte_of_a_large_file_is_a_small_change(&self) {
        let before = self.docker.own_bytes("two");
        self.docker.exec(
            "two",
            "printf x | dd of=/large bs=1 seek=33000000 conv=notrunc 2>/dev/null; sync",
        );
        let grown = self.docker.own_bytes("two").saturating_sub(before);
        if self.copies_files {
            assert!(grown >= LARGE as u64, "one byte took only {grown}");
        } else {
            assert!(grown < 256 << 10, "one byte took {grown}");
        }
        // The others are unchanged.
        let sum = |name| self.docker.exec(name, "sha256sum /large");
        assert_eq!(sum("one"), sum("three"));
        assert_ne!(sum("one"), sum("two"));
    }

    fn a_diff_tells_what_changed(&self) {
        assert_eq!(self.docker.ok(["diff", "five"]), "");
        self.docker.exec("one", "echo hello > /out.txt; rm /page; echo more >> /made; mkdir -p /a/b; echo x > /a/b/c; mv /hello.sh /moved.sh");
        let mut lines: Vec<String> = self
            .docker
            .ok(["diff", "one"])
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "A /a",
                "A /a/b",
                "A /a/b/c",
                "A /moved.sh",
                "A /out.txt",
                "C /made",
                "D /hello.sh",
                "D /page"
            ]
        );
        assert_eq!(self.docker.ok(["diff", "two"]), "C /large");
    }

    fn a_running_container_is_committed(&self) {
        let docker = self.docker;
        docker.ok([
            "commit",
            "--message",
            "as it was",
            "one",
            "acme/committed:1",
        ]);
        docker.exec("one", "echo later > /out.txt");
        let seen = docker.run(
            &[],
            "acme/committed:1",
            "cat /out.txt /made; test ! -e /page; /moved.sh",
        );
        assert_eq!(seen, "hello\nmade\nmore\nHello world\n");
        assert_eq!(self.layers("acme/committed:1").len(), 7);
        // A layer of a small change is small, even if a file of the image is large.
        docker.ok(["commit", "four", "acme/unchanged:1"]);
        assert_eq!(docker.run(&[], "acme/unchanged:1", "cat /page"), "hello\n");
        docker.ok(["rmi", "acme/unchanged:1"]);
    }

    fn files_are_copied_in_and_out(&self) {
        let (docker, folder) = (self.docker, self.folder);
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        fs::write(tree.join("deep/er/file"), "from outside\n").unwrap();
        std::os::unix::fs::symlink("deep/er", tree.join("link")).unwrap();
        let back = |name: &str, container: &str| {
            let to = folder.join(format!("back-{container}"));
            docker.ok(["cp", &format!("{container}:{name}"), to.to_str().unwrap()]);
            fs::read_to_string(to.join("link/file")).unwrap()
        };
        docker.ok(["cp", tree.to_str().unwrap(), "three:/copied"]);
        assert_eq!(
            docker.exec("three", "cat /copied/link/file"),
            "from outside\n"
        );
        assert_eq!(back("/copied", "three"), "from outside\n");
        // Also for containers that do not run, and that never ran.
        docker.ok(["create", "--name", "never", "--network=none", FINAL]);
        docker.ok(["kill", "four"]);
        for name in ["never", "four"] {
            docker.ok(["cp", tree.to_str().unwrap(), &format!("{name}:/copied")]);
            assert_eq!(back("/copied", name), "from outside\n");
        }
        docker.ok(["start", "four"]);
        assert_eq!(
            docker.exec("four", "cat /copied/link/file"),
            "from outside\n"
        );
        docker.ok(["rm", "never"]);
    }

    fn images_are_saved_and_loaded(&self) {
        let docker = self.docker;
        let archive = self.folder.join("saved.tar");
        let archive = archive.to_str().unwrap();
        docker.ok(["save", "--output", archive, "acme/committed:1"]);
        let layers = self.layers("acme/committed:1");
        docker.ok(["rmi", "acme/committed:1"]);
        assert!(
            !docker
                .attempt(["inspect", "acme/committed:1"])
                .status
                .success()
        );
        docker.ok(["load", "--input", archive]);
        assert_eq!(self.layers("acme/committed:1"), layers);
        assert_eq!(
            docker.run(&[], "acme/committed:1", "cat /out.txt"),
            "hello\n"
        );
        if let Some(service) = &self.world.service {
            // cowshed can read what Docker saves.
            service.cowshed(["image", "import", archive, "--name", "from-docker:1"]);
            service.cowshed(["image", "rm", "from-docker:1"]);
        }
    }

    fn a_container_is_exported_and_imported(&self) {
        let docker = self.docker;
        let archive = self.folder.join("flat.tar");
        let archive = archive.to_str().unwrap();
        docker.ok(["export", "--output", archive, "one"]);
        docker.ok(["import", archive, "acme/flat:1"]);
        assert_eq!(self.layers("acme/flat:1").len(), 1);
        assert_eq!(
            docker.run(&[], "acme/flat:1", "cat /out.txt /made"),
            "later\nmade\nmore\n"
        );
        assert_eq!(
            docker.run(&[], "acme/flat:1", "sha256sum /large"),
            docker.exec("one", "sha256sum /large")
        );
    }

    fn volumes_and_binds_outlive_their_containers(&self) {
        let docker = self.docker;
        docker.ok(["volume", "create", "data"]);
        let bound = self.folder.join("bound");
        fs::create_dir(&bound).unwrap();
        let bind = format!("{}:/bound", bound.display());
        let options = ["--volume", "data:/data", "--volume", &bind];
        docker.run_waiting("writer", &options, FINAL);
        docker.exec("writer", "echo kept > /data/file; echo kept > /bound/file");
        // Neither is a change of the container.
        let changes = docker.ok(["diff", "writer"]);
        assert!(!changes.contains("file"), "{changes}");
        docker.ok(["rm", "--force", "writer"]);
        assert_eq!(fs::read_to_string(bound.join("file")).unwrap(), "kept\n");
        assert_eq!(
            docker.run(&options, FINAL, "cat /data/file /bound/file"),
            "kept\nkept\n"
        );
        docker.ok(["volume", "rm", "data"]);
        if self.is_ours {
            self.a_volume_of_the_plugin_is_a_file_system_of_its_own();
        }
    }

    fn a_volume_of_the_plugin_is_a_file_system_of_its_own(&self) {
        let docker = self.docker;
        let create = ["volume", "create", "--driver", "cowshed"];
        docker.ok(create.into_iter().chain(["--opt", "size=1G", "thin"]));
        let options = ["--volume", "thin:/data"];
        docker.run(&options, FINAL, "echo thin > /data/file");
        docker.run_waiting("user", &options, FINAL);
        assert_eq!(docker.exec("user", "cat /data/file"), "thin\n");
        let refused = docker.attempt(["volume", "rm", "thin"]);
        assert!(!refused.status.success(), "a volume in use was removed");
        docker.ok(["rm", "--force", "user"]);
        assert_eq!(docker.run(&options, FINAL, "cat /data/file"), "thin\n");
        docker.ok(["volume", "rm", "thin"]);
    }

    fn a_build_uses_what_it_has_built(&self) {
        let context = self.folder.join("app");
        fs::create_dir_all(context.join("src")).unwrap();
        fs::write(context.join("src/main.sh"), "echo one\n").unwrap();
        let file = format!(
            "FROM {BASE} AS build\nWORKDIR /app\nRUN mkdir /cache && echo slow > /cache/x\n\
             COPY src src\nRUN cp src/main.sh /bin/app && chmod +x /bin/app && rm -r /cache\n\
             FROM {MIDDLE}\nCOPY --from=build /bin/app /bin/app\nRUN rm /page\nCMD [\"sh\", \"/bin/app\"]\n"
        );
        fs::write(context.join("Dockerfile"), file).unwrap();
        self.docker.build(&context, "acme/app:1");
        assert_eq!(
            self.docker
                .ok(["run", "--rm", "--network=none", "acme/app:1"]),
            "one"
        );
        assert_eq!(
            self.docker
                .run(&[], "acme/app:1", "ls /page 2>/dev/null || echo gone"),
            "gone\n"
        );
        fs::write(context.join("src/main.sh"), "echo two\n").unwrap();
        let said = self.docker.build(&context, "acme/app:2");
        assert!(said.contains("CACHED"), "{said}");
        assert_eq!(
            self.docker
                .ok(["run", "--rm", "--network=none", "acme/app:2"]),
            "two"
        );
    }

    /// As after a reboot: nothing is mounted, and stopped containers can be started.
    fn containers_come_back_after_a_restart(&self) {
        self.docker.ok(["stop", "--time", "0", "three"]);
        self.docker.ok(["restart", "--time", "0", "two"]);
        assert_eq!(
            self.docker
                .exec("two", "dd if=/large bs=1 skip=33000000 count=1 2>/dev/null"),
            "x"
        );
        self.docker.ok(["start", "three"]);
        assert_eq!(
            self.docker.exec("three", "cat /copied/deep/er/file"),
            "from outside\n"
        );
    }

    fn everything_is_removed(&self) {
        let docker = self.docker;
        let refused = docker.attempt(["rmi", FINAL]);
        assert!(
            !refused.status.success(),
            "an image with containers was removed"
        );
        for name in CONTAINERS {
            docker.ok(["rm", "--force", name]);
        }
        assert_eq!(docker.ok(["ps", "--all", "--quiet"]), "");
        docker.ok(["system", "prune", "--all", "--force", "--volumes"]);
        docker.ok(["builder", "prune", "--all", "--force"]);
        assert_eq!(docker.ok(["images", "--all", "--quiet"]), "");
    }
}
