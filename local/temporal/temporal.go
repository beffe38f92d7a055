// Package temporal runs a Temporal server and its Web UI inside this process, on loopback, with its state in Postgres.
// It is what a person who tries Kapsel gets instead of a cluster; production points Kapsel at a Temporal of its own.
//
// The server is Temporal's own (go.temporal.io/server), all four services of it, with 4 history shards in the databases
// temporal and temporal_visibility. Workflows survive a restart, and a kill -9: what was acknowledged is in Postgres.
//
// There is no authentication. Everybody on this machine can reach the ports.
package temporal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	uiserver "github.com/temporalio/ui-server/v2/server"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/temporal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Namespace is where Kapsel's workflows live. It is registered at the first start.
const Namespace = "kapsel"

const (
	host = "127.0.0.1"
	// startTimeout bounds Start as a whole. A first start takes some seconds; a machine may be busy.
	startTimeout = 2 * time.Minute
)

// Config says where the state is and what listens where.
type Config struct {
	// DatabaseURL names a Postgres server and a role that may create databases and the extension btree_gin. The database
	// in it isn't used. TLS isn't either: Postgres is on this machine. Required.
	DatabaseURL string
	// FrontendPort is where SDKs connect; 0 picks a free one. Temporal's own default is 7233. The other services take
	// free ports.
	FrontendPort int
	// UIPort is where the Web UI listens; 0 picks a free one. Temporal's own default is 8233.
	UIPort int
	// SearchAttributes are the keyword search attributes that [Namespace] knows, five at most: those with an index.
	SearchAttributes []string
	// Log gets what the server says at level warn and above. Default: none.
	Log *zap.Logger
}

// Server is a running Temporal server with its Web UI.
type Server struct {
	server     temporal.Server
	ui         *uiserver.Server
	ports      ports
	attributes []string
}

// Start makes or updates the databases, starts the server and the Web UI, registers [Namespace], and returns once a
// client's calls in it succeed. ctx bounds the start only (two minutes at most, whatever it says); the server runs until
// Stop.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	database, err := pgx.ParseConfig(cfg.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("read Temporal's database URL: %w", err)
	}
	logger := log.NewZapLogger(cfg.Log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel)))
	if err := setUpDatabases(ctx, database, logger); err != nil {
		return nil, err
	}
	ports, err := pickPorts(cfg.FrontendPort, cfg.UIPort)
	if err != nil {
		return nil, err
	}
	server, err := newServer(database, ports, logger)
	if err != nil {
		return nil, fmt.Errorf("set up Temporal server: %w", err)
	}
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start Temporal server: %w", errors.Join(err, server.Stop()))
	}
	s := &Server{server: server, ui: startUI(ports), ports: ports, attributes: cfg.SearchAttributes}
	if err := s.awaitReady(ctx); err != nil {
		s.ui.Stop()
		return nil, fmt.Errorf("start Temporal: %w", errors.Join(err, server.Stop()))
	}
	return s, nil
}

// Address is host:port for SDK clients.
func (s *Server) Address() string { return address(s.ports.frontend) }

// UIURL is where a browser finds the Web UI.
func (s *Server) UIURL() string { return "http://" + address(s.ports.ui) }

// Stop ends the Web UI, then the server's services in Temporal's own order. It returns ctx's error if that takes longer;
// the services go on stopping then. Workers and clients of this server should have stopped before.
func (s *Server) Stop(ctx context.Context) error {
	s.ui.Stop()
	stopped := make(chan error, 1)
	go func() { stopped <- s.server.Stop() }()
	select {
	case err := <-stopped:
		if err != nil {
			return fmt.Errorf("stop Temporal: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop Temporal: %w", ctx.Err())
	}
}

func address(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
