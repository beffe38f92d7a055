package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"strings"

	"github.com/caarlos0/env/v11"
	"go.uber.org/zap/zapcore"
)

// Config is read from environment variables. A value that can't be used stops the start, and the message names the
// variable.
type Config struct {
	// DatabaseURL leads to Postgres 15 or newer; its user is a member of the roles kapsel_owner, kapsel_engine and
	// kapsel_api. A pooler in transaction mode must pass on the startup parameter "role".
	DatabaseURL string `env:"DATABASE_URL"`
	// DatabaseDirectURL leads past any pooler to Postgres itself, for LISTEN and the migration lock. Default: DATABASE_URL.
	DatabaseDirectURL string `env:"DATABASE_DIRECT_URL"`
	// DatabaseMaxConns bounds each of a process's pools.
	DatabaseMaxConns int32 `env:"DATABASE_MAX_CONNS" envDefault:"16"`
	// TemporalAddress is host:port of Temporal's frontend. Only workers need it.
	TemporalAddress string `env:"TEMPORAL_ADDRESS" envDefault:"127.0.0.1:7233"`
	// TemporalNamespace must exist.
	TemporalNamespace string `env:"TEMPORAL_NAMESPACE" envDefault:"default"`
	// ListenAddr is where the api listens.
	ListenAddr string `env:"LISTEN_ADDR" envDefault:":8080"`
	// PublicURL is where clients reach the api, such as https://webhooks.example.com; it begins the ingest URLs that
	// they are shown. Default: those are relative.
	PublicURL string `env:"PUBLIC_URL"`
	// LogLevel is debug, info, warn or error.
	LogLevel zapcore.Level `env:"LOG_LEVEL" envDefault:"info"`
	// AllowNetworks are private networks that webhooks may be sent to, as prefixes separated by commas:
	// 10.0.0.0/8,fd00::/8. Everything that isn't public is refused otherwise.
	AllowNetworks []netip.Prefix `env:"ALLOW_NETWORKS"`
	// MaxInFlight is how many claimed deliveries of a worker may wait for the record of their first attempt.
	MaxInFlight int `env:"MAX_IN_FLIGHT" envDefault:"200"`
	// LogKeyDir holds the seeds of the logs' keys; a worker without it seals nothing. Only workers and `kapsel log`
	// need it, and it belongs into a backup.
	LogKeyDir string `env:"LOG_KEY_DIR"`
	// LogHighWaterDir holds the logs' high-water records. All workers that seal share it, and it never goes back to an
	// older state: keep it out of the backups of the database.
	LogHighWaterDir string `env:"LOG_HIGH_WATER_DIR"`
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
	case (c.LogKeyDir == "") != (c.LogHighWaterDir == ""):
		return errors.New("LOG_KEY_DIR and LOG_HIGH_WATER_DIR go together; set both or neither")
	}
	return nil
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
	name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
	return fmt.Errorf("%s can't be read as %s: %w", name, field.Type, parse.Err)
}
