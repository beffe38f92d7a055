package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"go.uber.org/zap/zapcore"
)

// Config is read from environment variables. A value that can't be used stops the start, and the message names the
// variable. What a variable means, and which commands read it, is said here and nowhere else: their help is made of the tags.
type Config struct {
	DatabaseURL string `env:"DATABASE_URL" for:"api worker migrate log fsck export rebuild tenant replay history" help:"Where Postgres 15 or newer is, such as postgres://user:password@host:5432/kapsel. The user is a member of the roles kapsel_owner, kapsel_engine and kapsel_api. A pooler in transaction mode must pass on the startup parameter role. Needed."`

	DatabaseDirectURL string `env:"DATABASE_DIRECT_URL" for:"worker migrate" help:"Leads past any pooler to Postgres itself, for LISTEN and the migration lock. Default: DATABASE_URL."`

	DatabaseMaxConns int32 `env:"DATABASE_MAX_CONNS" envDefault:"16" for:"api worker" help:"How many connections each of a process's pools may have, 2 to 1000. The api has two pools, a worker one."`

	TemporalAddress string `env:"TEMPORAL_ADDRESS" envDefault:"127.0.0.1:7233" for:"worker replay history" help:"host:port of Temporal's frontend."`

	TemporalNamespace string `env:"TEMPORAL_NAMESPACE" envDefault:"default" for:"worker replay history" help:"The namespace, which must exist."`

	TemporalAPIKey string `env:"TEMPORAL_API_KEY" for:"worker replay history" help:"An API key of Temporal. It switches TLS on. Default: none."`

	TemporalTLS bool `env:"TEMPORAL_TLS" for:"worker replay history" help:"true: use TLS, by the system's certificate authorities if none is given. Each of the TEMPORAL_TLS_… variables switches it on too. Default: false."`

	TemporalCA string `env:"TEMPORAL_TLS_SERVER_CA_CERT_PATH" for:"worker replay history" help:"A PEM file with the authorities that Temporal's certificate may be from. Default: the system's."`

	TemporalCert string `env:"TEMPORAL_TLS_CLIENT_CERT_PATH" for:"worker replay history" help:"A PEM file with the certificate to show to Temporal (mTLS). Default: none."`

	TemporalKey string `env:"TEMPORAL_TLS_CLIENT_KEY_PATH" for:"worker replay history" help:"A PEM file with that certificate's private key."`

	TemporalServerName string `env:"TEMPORAL_TLS_SERVER_NAME" for:"worker replay history" help:"The name that Temporal's certificate must have. Default: the host of TEMPORAL_ADDRESS."`

	ListenAddr string `env:"LISTEN_ADDR" envDefault:":8080" for:"api" help:"Where the api listens: host:port, or :port for all addresses."`

	PublicURL string `env:"PUBLIC_URL" for:"api" help:"Where clients reach the api, such as https://webhooks.example.com; it begins the ingest URLs that they are shown. Default: those are relative."`

	StopDelay time.Duration `env:"STOP_DELAY" envDefault:"5s" for:"api" help:"How long the api goes on taking requests after SIGTERM while /health/ready says 503: as long as load balancers take to notice, 0s to 5m."`

	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s" for:"api" help:"How long requests under way may then take, 1s to 10m. Whoever stops the process waits for STOP_DELAY and DRAIN_TIMEOUT and 10 s more before it kills it."`

	IngestMaxRequests int `env:"INGEST_MAX_REQUESTS" envDefault:"4096" for:"api" help:"How many webhooks may be under way in a process, 16 to 1000000; beyond it they are answered 503, and 429 once half of them are of one endpoint."`

	IngestTenantRate int `env:"INGEST_TENANT_RATE" envDefault:"0" for:"api" help:"How many webhooks a second each process takes of one tenant before it answers 429; a second's worth may come at once. 0 for any number."`

	AllowNetworks networks `env:"ALLOW_NETWORKS" for:"api worker" help:"Private networks that webhooks may be sent to, as prefixes separated by commas: 10.0.0.0/8, fd00::/8. Default: none; only public addresses."`

	MaxInFlight int `env:"MAX_IN_FLIGHT" envDefault:"200" for:"worker" help:"How many claimed deliveries of a worker may wait for the record of their first attempt, 1 to 10000."`

	DestinationDisableAfter time.Duration `env:"DESTINATION_DISABLE_AFTER" envDefault:"120h" for:"worker" help:"How long every attempt to a destination must fail before it is disabled, such as 120h or 90m: 1m or more, or 0 for never. What waits for it stays in the queue, and goes on when it is enabled again. The same for all workers."`

	MetricsAddr string `env:"METRICS_ADDR" for:"api worker" help:"Where Prometheus finds the process's metrics, at /metrics, and probes a worker's health, at /health/…: host:port, or :port for all addresses. Each process on a host needs one of its own. Default: nowhere."`

	LogPublic logPublic `env:"LOG_PUBLIC" envDefault:"tiles" for:"api" help:"What of the logs can be read without an API key. heads: signed tree heads, keys and consistency proofs. tiles: also the tiles of the tree, so that monitors and mirrors of other projects work; they hold hashes that tell nothing about a leaf, but how many there are of all tenants together is plain."`

	LogKeyDir string `env:"LOG_KEY_DIR" for:"worker log" help:"A directory with the seeds of the logs' keys, which belongs into a backup. A worker without it delivers but seals nothing; then others must. Default: none."`

	LogHighWaterDir string `env:"LOG_HIGH_WATER_DIR" for:"worker log fsck rebuild" help:"A directory with the logs' high-water records. All workers that seal share it, and it never goes back to an older state: keep it out of the backups of the database. Set it together with LOG_KEY_DIR."`

	ReconcileEvery time.Duration `env:"RECONCILE_EVERY" envDefault:"5m" for:"worker" help:"How often attempts and logs are compared, such as 5m: 1m to 24h. The same for all workers."`

	TargetDatabaseURL string `env:"TARGET_DATABASE_URL" for:"rebuild" help:"A fresh database, which gets the log: its schema was made by kapsel migrate, and no log in it has leaves. Needed."`

	TraceEndpoint string `env:"OTEL_EXPORTER_OTLP_ENDPOINT" for:"api worker" help:"The URL of an OpenTelemetry collector, such as http://collector:4318, that gets traces by OTLP. What else OpenTelemetry's variables say of the way there (…_CERTIFICATE, …_TIMEOUT, …_COMPRESSION) holds too. Default: none; nothing is traced."`

	TraceTracesEndpoint string `env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" for:"api worker" help:"The same for traces only, and taken as it is, where /v1/traces is added to OTEL_EXPORTER_OTLP_ENDPOINT. Default: none."`

	TraceProtocol string `env:"OTEL_EXPORTER_OTLP_PROTOCOL" for:"api worker" help:"http/protobuf or grpc. Default: http/protobuf."`

	TraceHeaders string `env:"OTEL_EXPORTER_OTLP_HEADERS" for:"api worker" help:"Headers for the collector, such as its credentials: name=value,name=value, with values in URL encoding. Default: none."`

	TraceSampler string `env:"OTEL_TRACES_SAMPLER" for:"api worker" help:"Which traces are exported: always_on, always_off, or traceidratio. The same for all processes. parentbased_ before it changes nothing: whether a webhook is traced is never its sender's choice. Default: always_on."`

	TraceSamplerArg string `env:"OTEL_TRACES_SAMPLER_ARG" for:"api worker" help:"The part that traceidratio exports, 0 to 1. The same for all processes. Default: 1."`

	TraceService string `env:"OTEL_SERVICE_NAME" for:"api worker" help:"What the process is called in traces. Default: kapsel-api or kapsel-worker."`

	TraceDisabled string `env:"OTEL_SDK_DISABLED" for:"api worker" help:"true: nothing is traced. Default: false."`

	LogLevel zapcore.Level `env:"LOG_LEVEL" envDefault:"info" for:"api worker" help:"debug, info, warn or error."`
}

// networks are prefixes separated by commas, with or without spaces.
type networks []netip.Prefix

func (n *networks) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*n = append(*n, prefix)
	}
	return nil
}

// logPublic is what of the logs is everybody's: heads or tiles.
type logPublic string

func (p *logPublic) UnmarshalText(text []byte) error {
	switch value := logPublic(text); value {
	case "heads", "tiles":
		*p = value
		return nil
	}
	return errors.New("allowed are heads and tiles")
}

// disableAfter is DESTINATION_DISABLE_AFTER as the worker takes it: there 0 is the default, and less means never.
func (c *Config) disableAfter() time.Duration {
	if c.DestinationDisableAfter == 0 {
		return -1
	}
	return c.DestinationDisableAfter
}

// readConfig reads the environment given as KEY=value.
func readConfig(environ []string) (Config, error) {
	config, err := env.ParseAsWithOptions[Config](env.Options{Environment: env.ToMap(environ)})
	if err != nil {
		return Config{}, nameVariable(err)
	}
	if config.DatabaseDirectURL == "" {
		config.DatabaseDirectURL = config.DatabaseURL
	}
	return config, config.validate()
}

func (c *Config) validate() error {
	for _, v := range []struct{ name, value string }{{"DATABASE_URL", c.DatabaseURL}, {"DATABASE_DIRECT_URL", c.DatabaseDirectURL}} {
		if v.value == "" {
			return fmt.Errorf("%s is not set; set it to the URL of a Postgres database, such as postgres://user:password@host:5432/kapsel", v.name)
		}
		if u, err := url.Parse(v.value); err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return fmt.Errorf("%s is not a URL that starts with postgres://", v.name) // the value holds a password
		}
	}
	switch {
	case c.DatabaseMaxConns < 2 || c.DatabaseMaxConns > 1000:
		return fmt.Errorf("DATABASE_MAX_CONNS is %d; allowed are 2 to 1000", c.DatabaseMaxConns)
	case c.MaxInFlight < 1 || c.MaxInFlight > 10000:
		return fmt.Errorf("MAX_IN_FLIGHT is %d; allowed are 1 to 10000", c.MaxInFlight)
	case c.StopDelay < 0 || c.StopDelay > 5*time.Minute:
		return fmt.Errorf("STOP_DELAY is %s; allowed are 0s to 5m", c.StopDelay)
	case c.DrainTimeout < time.Second || c.DrainTimeout > 10*time.Minute:
		return fmt.Errorf("DRAIN_TIMEOUT is %s; allowed are 1s to 10m", c.DrainTimeout)
	case c.IngestMaxRequests < 16 || c.IngestMaxRequests > 1_000_000:
		return fmt.Errorf("INGEST_MAX_REQUESTS is %d; allowed are 16 to 1000000", c.IngestMaxRequests)
	case c.IngestTenantRate < 0 || c.IngestTenantRate > 1_000_000:
		return fmt.Errorf("INGEST_TENANT_RATE is %d; allowed are 1 to 1000000, and 0 for any number", c.IngestTenantRate)
	case c.DestinationDisableAfter != 0 && c.DestinationDisableAfter < time.Minute:
		return fmt.Errorf("DESTINATION_DISABLE_AFTER is %s; allowed are 1m and more, and 0 for never", c.DestinationDisableAfter)
	case c.ReconcileEvery < time.Minute || c.ReconcileEvery > 24*time.Hour:
		return fmt.Errorf("RECONCILE_EVERY is %s; allowed are 1m to 24h", c.ReconcileEvery)
	case (c.LogKeyDir == "") != (c.LogHighWaterDir == ""):
		return errors.New("LOG_KEY_DIR and LOG_HIGH_WATER_DIR go together; set both or neither")
	}
	return c.validateTracing()
}

// nameVariable puts the variable's name into the library's error, which names the field, and leaves out the value.
func nameVariable(err error) error {
	var parse env.ParseError
	var all env.AggregateError
	if !errors.As(err, &all) || len(all.Errors) == 0 || !errors.As(all.Errors[0], &parse) {
		return err
	}
	field, ok := reflect.TypeFor[Config]().FieldByName(parse.Name)
	if !ok {
		return err
	}
	return fmt.Errorf("%s can't be read: %w", field.Tag.Get("env"), parse.Err)
}
