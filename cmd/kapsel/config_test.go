package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
}

// A wrong value stops the start with the variable's name, and without a secret, in the message.
func TestConfigNamesTheVariableThatIsWrong(t *testing.T) {
	t.Parallel()
	const database = "DATABASE_URL=postgres://k:s3cret@db/kapsel"
	for name, environ := range map[string][]string{
		"DATABASE_URL":        {},
		"LOG_LEVEL":           {database, "LOG_LEVEL=loud"},
		"MAX_IN_FLIGHT":       {database, "MAX_IN_FLIGHT=many"},
		"ALLOW_NETWORKS":      {database, "ALLOW_NETWORKS=10.0.0.0"},
		"DATABASE_MAX_CONNS":  {database, "DATABASE_MAX_CONNS=1"},
		"LOG_KEY_DIR":         {database, "LOG_KEY_DIR=/keys"},
		"DATABASE_DIRECT_URL": {database, "DATABASE_DIRECT_URL=mysql://s3cret@db"},
	} {
		_, err := readConfig(environ)
		require.ErrorContains(t, err, name)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

// Every variable is named in the help of a command or in the production guide.
func TestEveryVariableIsDocumented(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile(filepath.Join("..", "..", "docs", "guides", "production.md"))
	require.NoError(t, err)
	text := string(guide)
	for _, command := range newCommand().Commands() {
		text += command.Long
	}
	for field := range reflect.TypeFor[Config]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		require.Contains(t, text, name)
	}
}
