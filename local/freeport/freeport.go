// Package freeport finds ports for servers that listen later, or again after they were killed.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Servers get ports below those that systems give to outgoing connections (Linux from 32768, others from 49152): one of those could
// be taken before the server listens, by a connection of anybody.
const first, end = 15000, 32000

const tries = 100

// Listen listens on such a port of the IPv4 loopback address.
func Listen() (net.Listener, error) {
	var err error
	for range tries {
		var l net.Listener
		if l, err = net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.N(end-first)))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no port from %d to %d is free: %w", first, end-1, err)
}

// Find returns such a port on which nobody listens now.
func Find() (int, error) {
	l, err := Listen()
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
