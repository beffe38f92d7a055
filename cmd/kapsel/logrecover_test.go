package main

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

func (s *sealedLog) seal(t *testing.T) error {
	t.Helper()
	return activities.NewSealing(activities.SealingConfig{DB: s.engine, KeyDir: s.variable("LOG_KEY_DIR"),
		HighWaterDir: s.variable("LOG_HIGH_WATER_DIR"), Log: zap.NewNop()}).SealNow(t.Context(), s.log.ID)
}

// backup copies the database, and returns what puts the copy in its place.
func (s *sealedLog) backup(t *testing.T) (restore func()) {
	t.Helper()
	config, err := pgx.ParseConfig(s.url)
	require.NoError(t, err)
	name := config.Database
	config.Database = "postgres"
	copied := func(from, to string) {
		s.engine.Reset()
		conn, err := pgx.ConnectConfig(context.Background(), config)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		for _, sql := range []string{
			"select pg_terminate_backend(pid) from pg_stat_activity where datname = '" + from + "'",
			"drop database if exists " + pgx.Identifier{to}.Sanitize() + " with (force)",
			"create database " + pgx.Identifier{to}.Sanitize() + " template " + pgx.Identifier{from}.Sanitize(),
		} {
			_, err := conn.Exec(context.Background(), sql)
			require.NoError(t, err)
		}
	}
	copied(name, name+"_backup")
	t.Cleanup(func() {
		conn, err := pgx.ConnectConfig(context.Background(), config)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(context.Background(), "drop database if exists "+pgx.Identifier{name + "_backup"}.Sanitize()+" with (force)")
		require.NoError(t, err)
	})
	return func() { copied(name+"_backup", name) }
}

// Every command of the guide does what the guide says, around a disaster that happens where it says so.
func TestTheGuideToRecovery(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/guides/recovery.md")
	require.NoError(t, err)
	blocks := shellBlock.FindAllStringSubmatch(string(guide), -1)
	require.Len(t, blocks, 3)
	s := newSealedLog(t, 300)
	s.queue(t, 5)
	restore := s.backup(t)
	s.queue(t, 701)
	require.NoError(t, s.seal(t))
	run := func(i int, says string) {
		stdout, stderr, status := s.run(t, blocks[i][1])
		require.Zero(t, status, "%s%s%s", blocks[i][1], stdout, stderr)
		require.Contains(t, stdout, says)
	}
	run(0, "checkpoint  size 1006, was 0\n")
	restore()
	s.queue(t, 1)
	require.ErrorIs(t, s.seal(t), attestation.ErrHighWaterConflict)
	run(1, "would get   leaves 300 to 1005: 5 with their bytes, 701 with their hash only\n")
	require.ErrorIs(t, s.seal(t), attestation.ErrHighWaterConflict)
	run(2, "verdict     sound\n")
	require.NoError(t, s.seal(t))
	stdout, _, status := s.run(t, "kapsel log recover --mirror mirror; kapsel log fsck; kapsel log export mirror")
	require.Zero(t, status)
	require.Contains(t, stdout, "recovered   nothing: the log has what was published, size 1007\n")
	require.Contains(t, stdout, "checked     1007 leaves (0 erased, 701 lost in a restore)")
	require.Contains(t, stdout, "checkpoint  size 1007, was 1006\n")
}

// What ends a log says what auditors have to be told; and a second run finds what came late.
func TestRecoverCloseTellsWhatToSay(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 3)
	restore := s.backup(t)
	s.queue(t, 2)
	require.NoError(t, s.seal(t))
	stdout, stderr, status := s.run(t, "kapsel log recover --close")
	require.Equal(t, 2, status, stdout)
	require.Contains(t, stderr, "the log has all that was published")
	restore()
	s.queue(t, 4)
	stdout, stderr, status = s.run(t, "kapsel log recover --close")
	require.Zero(t, status, stderr)
	name := id.Log.Format(s.log.ID)
	for _, line := range []string{"closed      " + name + "\n", "ends at     size 3\n", "published   size 5 at ", "moved       4 leaves that were waiting\n", "give auditors the new public key"} {
		require.Contains(t, stdout, line)
	}
	s.queue(t, 1) // of an api that hasn't heard of it
	stdout, stderr, status = s.run(t, "kapsel log recover --close --json --log "+name)
	require.Zero(t, status, stderr)
	var done struct {
		Moved        int
		ClosedBefore bool `json:"closed_before"`
		Successor    struct {
			LogID string `json:"log_id"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &done))
	require.True(t, done.ClosedBefore)
	require.Equal(t, 1, done.Moved)
	stdout, stderr, status = s.run(t, "kapsel log recover --mirror . --log "+name)
	require.Equal(t, 2, status, stdout)
	require.Contains(t, stderr, "the log was closed, and goes on as "+done.Successor.LogID)
	stdout, _, status = s.run(t, "kapsel log fsck --log "+name)
	require.Equal(t, 1, status)
	require.Contains(t, stdout, "high_water: size 5")
}

// The status tells what can be repaired by another mirror from what can't.
func TestMistakesWithRecover(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 3)
	restore := s.backup(t)
	s.queue(t, 2)
	require.NoError(t, s.seal(t))
	restore()
	for arguments, says := range map[string]string{
		"":                         "name a copy of the log's tiles with --mirror",
		"--close --mirror .":       "--close takes no mirror",
		"--mirror absent":          "there is no checkpoint in absent",
		"--mirror . --keys absent": "open absent: no such file",
		"--mirror . extra":         "accepts 0 arg(s), received 1",
		"--nonsense":               "unknown flag: --nonsense",
		"--close --log log_foo":    `--log: "log_foo" is not an ID`,
	} {
		_, stderr, status := s.run(t, "kapsel log recover "+arguments)
		require.Equal(t, 2, status, arguments)
		require.Contains(t, stderr, says, arguments)
	}
	_, stderr, status := s.run(t, "LOG_KEY_DIR= LOG_HIGH_WATER_DIR= kapsel log recover --close")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "LOG_KEY_DIR and LOG_HIGH_WATER_DIR are not set")
	_, stderr, status = s.run(t, "DATABASE_URL="+postgrestest.New(t)+" kapsel log recover --close")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "there is no log yet")
}
