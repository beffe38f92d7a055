package webhook_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// A host that answers no SYN: Linux drops them while the queue of a socket that nobody accepts from is full.
func TestConnectingEndsAtTheTimeout(t *testing.T) {
	t.Parallel()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(bound.(*syscall.SockaddrInet4).Port)).String()
	for range 16 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			break // the queue is full
		}
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: "http://" + addr, Timeout: 200 * time.Millisecond})
	require.Equal(t, webhook.ErrorTimeout, res.Err)
	require.False(t, res.Wrote)
}
