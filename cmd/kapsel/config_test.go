package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestConfigHasDefaults(t *testing.T) {
	t.Parallel()
	config, err := readConfig([]string{"DATABASE_URL=postgres://k:s@db/kapsel"})
	require.NoError(t, err)
	require.Equal(t, "postgres://k:s@db/kapsel", config.DatabaseDirectURL)
	require.Equal(t, "127.0.0.1:7233", config.TemporalAddress)
	require.Equal(t, zapcore.InfoLevel, config.LogLevel)
	require.Equal(t, 200, config.MaxInFlight)
	require.Equal(t, logPublic("tiles"), config.LogPublic)
	config, err = readConfig([]string{"DATABASE_URL=postgres://k:s@db/kapsel", "LOG_PUBLIC=heads"})
	require.NoError(t, err)
	require.Equal(t, logPublic("heads"), config.LogPublic)
}

// A wrong value stops the start with the variable's name, and without a secret, in the message.
func TestConfigNamesTheVariableThatIsWrong(t *testing.T) {
	t.Parallel()
	const database = "DATABASE_URL=postgres://k:s3cret@db/kapsel"
	for name, environ := range map[string][]string{
		"DATABASE_URL":              {},
		"LOG_LEVEL":                 {database, "LOG_LEVEL=loud"},
		"MAX_IN_FLIGHT":             {database, "MAX_IN_FLIGHT=many"},
		"ALLOW_NETWORKS":            {database, "ALLOW_NETWORKS=10.0.0.0"},
		"DATABASE_MAX_CONNS":        {database, "DATABASE_MAX_CONNS=1"},
		"DESTINATION_DISABLE_AFTER": {database, "DESTINATION_DISABLE_AFTER=59s"},
		"STOP_DELAY":                {database, "STOP_DELAY=6m"},
		"DRAIN_TIMEOUT":             {database, "DRAIN_TIMEOUT=0s"},
		"INGEST_MAX_REQUESTS":       {database, "INGEST_MAX_REQUESTS=15"},
		"INGEST_TENANT_RATE":        {database, "INGEST_TENANT_RATE=-1"},
		"LOG_KEY_DIR":               {database, "LOG_KEY_DIR=/keys"},
		"LOG_PUBLIC":                {database, "LOG_PUBLIC=leaves"},
		"DATABASE_DIRECT_URL":       {database, "DATABASE_DIRECT_URL=mysql://s3cret@db"},

		"OTEL_EXPORTER_OTLP_ENDPOINT":        {database, "OTEL_EXPORTER_OTLP_ENDPOINT=http://a:s3cret@collector:4318"},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": {database, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector:4318/s3cret"},
		"OTEL_EXPORTER_OTLP_PROTOCOL":        {database, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"},
		"OTEL_EXPORTER_OTLP_HEADERS":         {database, "OTEL_EXPORTER_OTLP_HEADERS=s3cret"},
		"OTEL_TRACES_SAMPLER":                {database, "OTEL_TRACES_SAMPLER=jaeger_remote"},
		"OTEL_TRACES_SAMPLER_ARG":            {database, "OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=NaN"},
	} {
		_, err := readConfig(environ)
		require.ErrorContains(t, err, name)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

func TestDisableAfter(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]time.Duration{"": 5 * 24 * time.Hour, "DESTINATION_DISABLE_AFTER=90m": 90 * time.Minute, "DESTINATION_DISABLE_AFTER=0": -1} {
		config, err := readConfig([]string{"DATABASE_URL=postgres://k:s@db/kapsel", set})
		require.NoError(t, err)
		require.Equal(t, want, config.disableAfter(), set)
	}
}

// explains finds the command of that name, or one right below it, whose help holds variables(name).
func explains(in *cobra.Command, name string) *cobra.Command {
	named := in.Name() == name || in.HasParent() && in.Parent().Name() == name
	if named && strings.Contains(in.Long, variables(name)) {
		return in
	}
	for _, sub := range in.Commands() {
		if found := explains(sub, name); found != nil {
			return found
		}
	}
	return nil
}

// The help of a command that reads a variable says what it means and what holds without it.
func TestEveryVariableIsExplained(t *testing.T) {
	t.Parallel()
	for field := range reflect.TypeFor[Config]().Fields() {
		name, help := field.Tag.Get("env"), field.Tag.Get("help")
		_, hasDefault := field.Tag.Lookup("envDefault")
		require.True(t, strings.HasSuffix(help, "."), name)
		if !hasDefault && name != "TEMPORAL_TLS_CLIENT_KEY_PATH" && name != "LOG_HIGH_WATER_DIR" { // which go with another
			require.Regexp(t, `Needed|Default`, help, name)
		}
		commands := strings.Fields(field.Tag.Get("for"))
		require.NotEmpty(t, commands, name)
		for _, command := range commands {
			found := explains(newCommand(), command)
			require.NotNil(t, found, "%s: a command whose help holds variables(%q)", name, command)
			require.Contains(t, found.Long, "\n  "+name+"\n", "%s --help", command)
			require.Contains(t, strings.Join(strings.Fields(found.Long), " "), help, "%s --help", command)
		}
	}
	require.Contains(t, variables("api"), "  LISTEN_ADDR\n      Where the api listens: host:port, or :port for all addresses. Default: :8080.\n")
	require.NotContains(t, variables("api"), "TEMPORAL_")
}

func TestNetworksMayHaveSpaces(t *testing.T) {
	t.Parallel()
	config, err := readConfig([]string{"DATABASE_URL=postgres://k:s@db/kapsel", "ALLOW_NETWORKS=10.0.0.0/8, fd00::/8 ,127.0.0.1/32"})
	require.NoError(t, err)
	require.Equal(t, networks{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("127.0.0.1/32")}, config.AllowNetworks)
}

func TestTemporalOptions(t *testing.T) {
	t.Parallel()
	options := func(environ ...string) client.Options {
		config, err := readConfig(append(environ, "DATABASE_URL=postgres://k:s@db/kapsel"))
		require.NoError(t, err)
		options, err := config.temporal()
		require.NoError(t, err)
		return options
	}
	plain := options("TEMPORAL_ADDRESS=temporal:7233", "TEMPORAL_NAMESPACE=kapsel")
	require.Equal(t, "temporal:7233", plain.HostPort)
	require.Equal(t, "kapsel", plain.Namespace)
	require.Nil(t, plain.ConnectionOptions.TLS)
	require.Nil(t, plain.Credentials)

	require.NotNil(t, options("TEMPORAL_TLS=true").ConnectionOptions.TLS)
	require.Equal(t, "temporal.example", options("TEMPORAL_TLS_SERVER_NAME=temporal.example").ConnectionOptions.TLS.ServerName)
	cloud := options("TEMPORAL_API_KEY=key")
	require.NotNil(t, cloud.ConnectionOptions.TLS, "a key never goes over the wire in the clear")
	require.NotNil(t, cloud.Credentials)

	cert, key := certificate(t)
	mutual := options("TEMPORAL_TLS_SERVER_CA_CERT_PATH="+cert, "TEMPORAL_TLS_CLIENT_CERT_PATH="+cert, "TEMPORAL_TLS_CLIENT_KEY_PATH="+key).ConnectionOptions.TLS
	require.Len(t, mutual.Certificates, 1)
	require.NotNil(t, mutual.RootCAs)
	require.False(t, mutual.InsecureSkipVerify)

	for _, wrong := range [][]string{{"TEMPORAL_TLS_CLIENT_CERT_PATH=" + cert}, {"TEMPORAL_TLS_SERVER_CA_CERT_PATH=" + key}, {"TEMPORAL_TLS_SERVER_CA_CERT_PATH=/missing"}} {
		config, err := readConfig(append(wrong, "DATABASE_URL=postgres://k:s@db/kapsel"))
		require.NoError(t, err)
		_, err = config.temporal()
		require.ErrorContains(t, err, "TEMPORAL_TLS_")
	}
}

// certificate writes a certificate of its own and its key as PEM files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
}

// Nothing is traced unless there is a collector, and whatever a sampler of OpenTelemetry's is called is known.
func TestTracesAreSampledAsConfigured(t *testing.T) {
	t.Parallel()
	const collector = "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318"
	for _, c := range []struct {
		environ []string
		traces  bool
		ratio   float64
	}{
		{nil, false, 1},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=", "OTEL_TRACES_SAMPLER=", "OTEL_TRACES_SAMPLER_ARG="}, false, 1},
		{[]string{collector}, true, 1},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://collector/in"}, true, 1},
		{[]string{collector, "OTEL_SDK_DISABLED=True"}, false, 1},
		{[]string{collector, "OTEL_TRACES_SAMPLER=always_off"}, false, 0},
		{[]string{collector, "OTEL_TRACES_SAMPLER=parentbased_always_off"}, false, 0},
		{[]string{collector, "OTEL_TRACES_SAMPLER=parentbased_always_on"}, true, 1},
		{[]string{collector, "OTEL_TRACES_SAMPLER=traceidratio"}, true, 1},
		{[]string{collector, "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.05"}, true, 0.05},
	} {
		config, err := readConfig(append(c.environ, "DATABASE_URL=postgres://k:s@db/kapsel"))
		require.NoError(t, err, c.environ)
		require.Equal(t, c.traces, config.traces(), c.environ)
		ratio, err := config.traceRatio()
		require.NoError(t, err)
		require.InDelta(t, c.ratio, ratio, 0, c.environ)
		tracer, err := config.tracer(t.Context(), "test", zap.NewNop())
		require.NoError(t, err)
		require.Equal(t, c.traces, tracer.On(), c.environ)
		tracer.Close()
	}
}
