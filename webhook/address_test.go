package webhook_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/kapsel-io/kapsel/webhook"
)

// nameserver is a resolver that asks a real DNS server on loopback, which answers what addresses says at that moment.
func nameserver(t *testing.T, addresses func(name string) []netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := resolve(buffer[:n], addresses); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func resolve(query []byte, addresses func(string) []netip.Addr) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
	found := addresses(strings.ToLower(q.Name.String()))
	if found == nil {
		answer.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range found {
		header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: q.Type, TTL: 0}
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// A name that was fine when it was looked at may lead elsewhere when it is dialed. What counts is the address that is dialed.
func TestARebindingNameReachesNothingPrivate(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	l, err := net.Listen("tcp", "0.0.0.0:0") // reached by every loopback address
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	url := "http://rebind.test:" + port

	var now atomic.Value
	now.Store("127.0.0.1") // stands for an address that may be reached
	resolver := nameserver(t, func(string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(now.Load().(string))} })
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	require.NoError(t, webhook.ValidateURL(url, allow...))
	c := newClient(t, webhook.ClientConfig{Allow: allow, Resolver: resolver, IdleTimeout: 1})
	require.Equal(t, 200, c.Send(t.Context(), webhook.Request{URL: url}).Status)
	require.EqualValues(t, 1, requests.Load())
	for _, private := range []string{
		"127.0.0.2", "0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.169.254", "192.168.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.2", "::127.0.0.2", "64:ff9b::7f00:2", "64:ff9b:1::7f00:2", "2002:7f00:2::", "2001::7f00:2", "fe80::1", "fec0::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
	} {
		now.Store(private)
		res := c.Send(t.Context(), webhook.Request{URL: url})
		require.Equal(t, webhook.ErrorBlockedAddress, res.Err, private)
		require.False(t, res.Wrote)
	}
	require.EqualValues(t, 1, requests.Load(), "nothing more arrived")
}
