// Package suite runs containerd's own test suite for snapshotters, and its benchmark's calls,
// against `cowshed serve`, through the client that containerd's proxy plugins use.
//
// Each test of the suite gets a pool and a daemon of its own. COWSHED names the program and
// COWSHED_SNAPSHOT_MOUNTS what snapshots are handed out as (dir, loop, file or overlay; dir unless set).
package suite

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

const patience = 60 * time.Second

func program() string {
	if path := os.Getenv("COWSHED"); path != "" {
		return path
	}
	return "cowshed"
}

// start makes a pool below root and serves it; the function that it answers stops that.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	pool, socket := filepath.Join(root, "pool"), filepath.Join(root, "containerd.sock")
	made, err := exec.Command(program(), "--pool", pool, "pool", "create", "--size", "4G").CombinedOutput()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, made)
	}
	arguments := []string{"--pool", pool, "--json", "serve", "--foreground", "--containerd-socket", socket}
	if mounts := os.Getenv("COWSHED_SNAPSHOT_MOUNTS"); mounts != "" {
		arguments = append(arguments, "--snapshot-mounts", mounts)
	}
	daemon := exec.Command(program(), arguments...)
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	daemon.Stderr = log
	output, err := daemon.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	if err := ready(output); err != nil {
		daemon.Process.Kill()
		daemon.Wait()
		said, _ := os.ReadFile(log.Name())
		return nil, nil, fmt.Errorf("the daemon did not start: %w: %s", err, said)
	}
	// As containerd itself connects to a proxy plugin.
	connection, err := grpc.DialContext(ctx, dialer.DialAddress(socket),
		grpc.WithContextDialer(dialer.ContextDialer), grpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	stop := func() error {
		connection.Close()
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- daemon.Wait() }()
		select {
		case err = <-ended:
		case <-time.After(patience):
			daemon.Process.Kill()
			err = fmt.Errorf("it did not stop: %v", <-ended)
		}
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w: %s", err, said)
		}
		checked, err := exec.Command(program(), "--pool", pool, "pool", "check", "--deep").CombinedOutput()
		if err != nil {
			return fmt.Errorf("the pool is not sound: %w: %s", err, checked)
		}
		return nil
	}
	client := snapshotsapi.NewSnapshotsClient(connection)
	return proxy.NewSnapshotter(client, "cowshed"), stop, nil
}

// ready waits until the daemon says that it serves, which is one JSON document.
func ready(output io.Reader) error {
	told := make(chan error, 1)
	go func() {
		var document map[string]interface{}
		reader := bufio.NewReader(output)
		told <- json.NewDecoder(reader).Decode(&document)
		io.Copy(io.Discard, reader)
	}()
	select {
	case err := <-told:
		return err
	case <-time.After(patience):
		return fmt.Errorf("it said nothing for %v", patience)
	}
}

func TestSnapshotter(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it mounts what the snapshotter hands out")
	}
	testsuite.SnapshotterSuite(t, "cowshed", start)
}
