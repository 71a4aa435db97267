// containerd's own tests of snapshotters, over the socket that containerd itself would use.
//
// Each test gets a pool and a daemon of its own. tests/runtimes builds and runs this with Debian's
// Go and Debian's sources of containerd:
//
//	COWSHED                   the program
//	COWSHED_SNAPSHOT_MOUNTS   dir or loop
package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

const patience = 20 * time.Second

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, "cowshed", start)
}

// start makes a pool below root, and serves it.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	program, mounts := os.Getenv("COWSHED"), os.Getenv("COWSHED_SNAPSHOT_MOUNTS")
	pool, socket := filepath.Join(root, "pool"), filepath.Join(root, "s")
	create := exec.Command(program, "--pool", pool, "pool", "create", "--size", "8G")
	if said, err := create.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, said)
	}
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	daemon := exec.Command(program, "--pool", pool, "serve", "--foreground",
		"--mount", filepath.Join(root, "volumes"), "--containerd-socket", socket,
		"--snapshot-mounts", mounts)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		daemon.Process.Signal(syscall.SIGTERM)
		err := daemon.Wait()
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("%w: %s", err, said)
		}
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			stop()
			return nil, nil, fmt.Errorf("the daemon does not serve %s", socket)
		}
	}
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		stop()
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "cowshed")
	return snapshotter, func() error {
		if err := connection.Close(); err != nil {
			return err
		}
		return stop()
	}, nil
}
