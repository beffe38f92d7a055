package temporal

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/kapsel-io/kapsel/local/freeport"
)

// ErrPortTaken says that something else listens on a port of [Config].
var ErrPortTaken = errors.New("port is taken")

// ports are where everything listens, on loopback.
type ports struct {
	frontend, frontendHTTP, history, matching, worker, ui int
}

// pickPorts checks the ports that were asked for and finds free ones for the rest. All listeners are open at once, so no
// port comes twice; between closing them and the server's own listening another server may take one, and the start
// then fails.
func pickPorts(frontend, ui int) (ports, error) {
	p := ports{frontend: frontend, ui: ui}
	for _, port := range []struct {
		name   string
		number *int
	}{
		{"Temporal", &p.frontend},
		{"the Temporal Web UI", &p.ui},
		{"Temporal's HTTP API", &p.frontendHTTP},
		{"Temporal's history service", &p.history},
		{"Temporal's matching service", &p.matching},
		{"Temporal's worker service", &p.worker},
	} {
		l, err := listen(*port.number)
		if errors.Is(err, syscall.EADDRINUSE) {
			return ports{}, fmt.Errorf("%w: %d on %s, wanted for %s; stop what listens there, or choose another port",
				ErrPortTaken, *port.number, host, port.name)
		}
		if err != nil {
			return ports{}, fmt.Errorf("listen for %s: %w", port.name, err)
		}
		defer func() { _ = l.Close() }()
		*port.number = l.Addr().(*net.TCPAddr).Port
	}
	return p, nil
}

func listen(port int) (net.Listener, error) {
	if port == 0 {
		return freeport.Listen()
	}
	return net.Listen("tcp4", address(port))
}
