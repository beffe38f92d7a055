package freeport_test

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/local/freeport"
)

func TestFind(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 50 {
		port, err := freeport.Find()
		require.NoError(t, err)
		require.Greater(t, port, 1024)
		require.Less(t, port, 32768, "no outgoing connection has it")
		seen[port] = true
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		require.NoError(t, err)
		defer func() { require.NoError(t, l.Close()) }()
	}
	require.Len(t, seen, 50, "one that is taken isn't found")
}
