package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/kapsel-io/kapsel/local/freeport"
)

// network is the proxies between the parts, by name.
type network struct {
	server  *toxiproxy.ApiServer // never listens: it is only what proxies belong to
	proxies map[string]*toxiproxy.Proxy

	mu sync.Mutex // of whether a proxy listens, and where it leads
}

func newNetwork() *network {
	return &network{
		server:  toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()),
		proxies: map[string]*toxiproxy.Proxy{},
	}
}

// link starts a proxy and returns its address, which stays the same when it is cut and mended.
func (n *network) link(name, upstream string) (string, error) {
	port, err := freeport.Find() // nobody takes it while the proxy is cut
	if err != nil {
		return "", err
	}
	proxy := toxiproxy.NewProxy(n.server, name, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), upstream)
	if err := proxy.Start(); err != nil {
		return "", fmt.Errorf("start proxy %s: %w", name, err)
	}
	n.proxies[name] = proxy
	return proxy.Listen, nil
}

func (n *network) stop() {
	for _, proxy := range n.proxies {
		proxy.Stop()
	}
}

// named returns the proxies of a target: one, or with all: those of every process.
func (n *network) named(target string) []*toxiproxy.Proxy {
	var found []*toxiproxy.Proxy
	end, all := strings.CutPrefix(target, "all")
	for name, proxy := range n.proxies {
		if name == target || all && strings.HasSuffix(name, end) {
			found = append(found, proxy)
		}
	}
	return found
}

// cut closes all connections and refuses new ones.
func (n *network) cut(target string) func() error {
	proxies := n.named(target)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, proxy := range proxies {
		proxy.Stop()
	}
	return func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		var errs []error
		for _, proxy := range proxies {
			errs = append(errs, proxy.Start())
		}
		return errors.Join(errs...)
	}
}

// lead has every proxy that leads to one address lead to another; its connections end. One that is cut stays so.
func (n *network) lead(from, to string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, proxy := range n.proxies {
		if proxy.Upstream == from {
			errs = append(errs, proxy.Update(&toxiproxy.Proxy{Listen: proxy.Listen, Upstream: to, Enabled: proxy.Enabled}))
		}
	}
	return errors.Join(errs...)
}

// poison puts a toxic on both directions.
func (n *network) poison(target, kind, attributes string) (func() error, error) {
	type dose struct {
		proxy *toxiproxy.Proxy
		name  string
	}
	var doses []dose
	cure := func() error {
		var errs []error
		for _, d := range doses {
			errs = append(errs, d.proxy.Toxics.RemoveToxic(context.Background(), d.name))
		}
		return errors.Join(errs...)
	}
	for _, proxy := range n.named(target) {
		for _, direction := range []string{"upstream", "downstream"} {
			toxic, err := proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
				`{"type": %q, "stream": %q, "attributes": %s}`, kind, direction, attributes)))
			if err != nil {
				return nil, errors.Join(fmt.Errorf("%s on %s: %w", kind, proxy.Name, err), cure())
			}
			doses = append(doses, dose{proxy, toxic.Name})
		}
	}
	return cure, nil
}

func (n *network) silence(target string) (func() error, error) {
	return n.poison(target, "timeout", `{"timeout": 0}`)
}

func (n *network) slow(target string) (func() error, error) {
	return n.poison(target, "latency", `{"latency": 200, "jitter": 150}`)
}
