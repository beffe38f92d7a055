package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
)

// Config says what a Server works with. Only the pools are needed.
type Config struct {
	// Engine is a pool of role kapsel_engine, for ingest.
	Engine *pgxpool.Pool
	// API is a pool of role kapsel_api, for everything else.
	API *pgxpool.Pool
	// Log gets one line per request, without bodies, headers and secrets. Default: none.
	Log *zap.Logger
	// Notify is called after each commit that gave dispatchers work. It must not block. Default: nothing is called.
	Notify func()
	// Current reports whether the database has the schema that this version needs. Default: it is taken to have it.
	Current func(ctx context.Context) (bool, error)
	// Allow are the networks that destinations may have addresses in although they aren't public. Default: none.
	Allow []netip.Prefix
	// PublicURL is where clients reach this server, such as https://kapsel.example; it begins the ingest URLs that they
	// are shown. Default: none, and the URLs are relative.
	PublicURL string
	// BodyTimeout bounds how long a webhook's body may take to arrive. Default: 30 s.
	BodyTimeout time.Duration
	// MaxBodyBytes bounds the bodies of all webhooks that are being read or committed, together; beyond it they are
	// answered 503. One endpoint's have a quarter of it, at least MaxBody. Default: 256 MiB.
	MaxBodyBytes int64
	// MaxRequests bounds the webhooks that are under way, from their headers to the answer; beyond it they are answered 503. One
	// endpoint may have half of it, and is answered 429 then. Default: 4096.
	MaxRequests int
	// TenantRate is how many webhooks a second this process takes of one tenant; beyond it they are answered 429. A second's worth
	// may come at once. Default: any number.
	TenantRate int
	// AcceptTimeout bounds how long a webhook waits for its commit while Postgres answers but is slow; while it doesn't, nobody waits
	// for more than 2 s. Default: 5 s.
	AcceptTimeout time.Duration
	// StopDelay is how long Serve goes on as before when it is to stop, but for saying that it isn't ready: so long load balancers
	// may take to notice. Default: none.
	StopDelay time.Duration
	// DrainTimeout bounds how long requests under way may take when Serve stops. Default: 30 s.
	DrainTimeout time.Duration
	// Metrics is where the server registers its metrics. Default: nowhere.
	Metrics prometheus.Registerer
	// Tracing is told of each webhook that arrives. Default: nobody is.
	Tracing *tracing.Tracer
	// HeadsOnly keeps the tiles of the logs to ourselves: heads and consistency proofs are everybody's, inclusion proofs the
	// tenant's. Default: tiles are everybody's too.
	HeadsOnly bool
}

// Server answers HTTP requests. It implements openapi.StrictServerInterface.
type Server struct {
	config    Config
	endpoints *endpointCache
	group     *postgres.Group[*postgres.Acceptance, postgres.Accepted]
	bodies    *budget
	admission *admission
	health    *health
	looking   chan struct{} // a place for each large body that is looked into, see look
	proofKeys chan struct{} // a place for each look-up of a key of proof tokens
	metrics   *metrics
	tiles     *tileCache
	handler   http.Handler
}

// How long things may take. A request's handler is done before its write timeout.
const (
	readHeaderTimeout = 10 * time.Second
	requestTimeout    = 20 * time.Second // of a handler, without the time in which an ingested body arrives
	readTimeout       = 60 * time.Second
	writeTimeout      = 90 * time.Second
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
)

// setMode keeps gin from writing to standard output. It is global.
var setMode = sync.OnceFunc(func() { gin.SetMode(gin.ReleaseMode) })

// New makes a server. It needs no Postgres yet. Close it.
func New(config Config) (*Server, error) {
	if config.Engine == nil || config.API == nil {
		return nil, errors.New("api needs a pool of role kapsel_engine and one of role kapsel_api")
	}
	if err := config.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		config: config, bodies: newBudget(config.MaxBodyBytes), admission: newAdmission(&config),
		looking: make(chan struct{}, runtime.GOMAXPROCS(0)), proofKeys: make(chan struct{}, proofKeysAtOnce), metrics: newMetrics(config.Metrics), tiles: newTileCache(config.Metrics),
	}
	s.health = newHealth(&s.config)
	s.endpoints = newEndpointCache(config.Engine, s.health.watch)
	s.group = postgres.NewGroup(postgres.GroupConfig[*postgres.Acceptance, postgres.Accepted]{
		Commit:  s.commit,
		Size:    (*postgres.Acceptance).Size,
		Key:     func(a *postgres.Acceptance) uuid.UUID { return a.TenantID },
		Observe: postgres.NewCommitMetrics(config.Metrics, "accept").Observe,
	})
	s.metrics.watch(config.Metrics, s)
	s.handler = s.routes()
	return s, nil
}

func (c *Config) setDefaults() error {
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return errors.New("the public URL must be like https://kapsel.example, without query and fragment")
		}
		c.PublicURL = strings.TrimSuffix(c.PublicURL, "/")
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Notify == nil {
		c.Notify = func() {}
	}
	if c.Current == nil {
		c.Current = func(context.Context) (bool, error) { return true, nil }
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 30 * time.Second
	}
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = 256 << 20
	}
	if c.MaxRequests == 0 {
		c.MaxRequests = 4096
	}
	if c.AcceptTimeout == 0 {
		c.AcceptTimeout = 5 * time.Second
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 30 * time.Second
	}
	return nil
}

// The routes that the code names; all others stand in openapi.yaml only.
const (
	routeIngest  = "/ingest/:endpoint_id"
	routeLive    = "/health/live"
	routeReady   = "/health/ready"
	routeStartup = "/health/startup"
	apiPrefix    = "/api/v1/"

	routeReceipt = "/api/v1/attestation/receipts/:delivery_id/:attempt_number"
)

func (s *Server) routes() http.Handler {
	setMode()
	engine := gin.New()
	engine.ContextWithFallback = true // handlers get the gin.Context as their context: it must end with the request
	engine.HandleMethodNotAllowed = true
	engine.RedirectTrailingSlash = false // a redirected POST would lose its body
	engine.Use(newHTTPMetrics(s.config.Metrics).observe, nameRequest, s.logRequest, s.trace, s.recoverPanic, secure, s.moveOn)
	engine.NoRoute(func(c *gin.Context) {
		s.fail(c, &problem{kind: kindNotFound, detail: "There is nothing at this path."})
	})
	engine.NoMethod(func(c *gin.Context) {
		s.fail(c, &problem{kind: kindMethod, detail: "Use one of the methods in the Allow header."})
	})
	engine.POST(routeIngest, s.ingest)
	engine.GET(routeIngest, s.handshake)

	managed := engine.Group("", s.limitTime, s.authenticate, s.checkQuery, s.checkBody)
	strict := openapi.NewStrictHandlerWithOptions(s, nil, openapi.StrictGinServerOptions{
		RequestErrorHandlerFunc:  s.fail,
		HandlerErrorFunc:         s.fail,
		ResponseErrorHandlerFunc: s.fail,
	})
	managed.GET(routeCheckpoint, s.getCheckpoint)
	managed.GET(routeTile, s.getTile)
	openapi.RegisterHandlersWithOptions(managed, strict, openapi.GinServerOptions{ErrorHandler: s.failParameter})
	return engine
}

// secure sets what every answer carries: it is data, and no browser should take it for anything else.
func secure(c *gin.Context) {
	c.Writer.Header().Set("X-Content-Type-Options", "nosniff")
}

// limitTime bounds a handler, so that a stalled Postgres is answered and not waited for; one that is known to be away isn't
// waited for at all. What needs no Postgres is answered all the same.
func (s *Server) limitTime(c *gin.Context) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), requestTimeout)
	defer cancel()
	if !strings.HasPrefix(c.FullPath(), "/health/") {
		there, leave := s.health.watch.While(ctx)
		defer leave()
		ctx = there
	}
	c.Request = c.Request.WithContext(ctx)
	c.Next()
}

// failParameter answers for the generated code, whose errors begin with what and the parameter's name.
func (s *Server) failParameter(c *gin.Context, err error, _ int) {
	for _, before := range []string{"Invalid format for parameter ", "Query argument ", "Expected one value for "} {
		if rest, ok := strings.CutPrefix(err.Error(), before); ok {
			name, _, _ := strings.Cut(strings.NewReplacer(":", " ", ",", " ").Replace(rest), " ")
			s.fail(c, invalidParameter(name, "is missing, repeated or not of the type that it must have"))
			return
		}
	}
	s.fail(c, &problem{kind: kindParameter, detail: "A parameter is malformed. Compare the request with the API's description.", cause: err})
}

// Handler returns what answers requests, for callers that bring a server of their own.
func (s *Server) Handler() http.Handler { return s.handler }

// Close commits what was taken in and ends the server; requests that come later are answered 503. Pools stay open.
func (s *Server) Close() {
	s.group.Close()
	s.endpoints.close()
	s.health.close()
}

// Serve answers requests on listener until ctx ends; then it says that it isn't ready, and after StopDelay takes no new ones, gives
// those in flight DrainTimeout, and closes the server. It returns nil if all of them were answered. Meanwhile it also takes in
// operational webhooks.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	defer s.Close()
	telling, stopTelling := context.WithCancel(ctx)
	var teller sync.WaitGroup
	teller.Go(func() { s.tellTenants(telling) })
	defer teller.Wait()
	defer stopTelling()
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(s.config.Log.Named("http")),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	s.health.draining.Store(true)
	s.config.Log.Info("api stopping", zap.Duration("delay", s.config.StopDelay), zap.Duration("drain", s.config.DrainTimeout))
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-time.After(s.config.StopDelay):
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.DrainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("drain HTTP requests: %w", err), server.Close())
	}
	return nil
}
