package main

import (
	"net/url"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kapsel": main})
}

// Each script gets a fresh, migrated database as $DATABASE_URL.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(env *testscript.Env) error {
		tb, ok := env.T().(testing.TB)
		require.True(t, ok)
		database := postgrestest.New(tb)
		parsed, err := url.Parse(database)
		if err != nil {
			return err
		}
		env.Setenv("DATABASE_URL", database)
		env.Setenv("DATABASE_NAME", strings.TrimPrefix(parsed.Path, "/"))
		return nil
	}})
}

// Every command explains itself: a sentence or more, and for those that take flags an example.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	for _, command := range append(newCommand().Commands(), newCommand()) {
		for _, c := range append(command.Commands(), command) {
			require.NotEmpty(t, c.Short, c.CommandPath())
			if c.Runnable() {
				require.Contains(t, c.Long, "Variables: DATABASE_URL", c.CommandPath())
			}
		}
	}
}
