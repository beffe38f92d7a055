package main

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// setAside has leaves set aside: 1, whose attempt is recorded and whose hash is wrong; 2, of which nothing is recorded, and
// which tries to write on the terminal.
func (s *sealedLog) setAside(t *testing.T) {
	t.Helper()
	owner := postgrestest.Pool(t, s.url, postgres.Owner)
	s.queue(t, 2)
	for _, statement := range []string{
		`insert into attempts (id, delivery_id, event_id, tenant_id, endpoint_id, destination_id, log_id, number, epoch, kind, outcome, error, attempted_at,
			duration_ms, endpoint_url, response_status, response_size, response_truncated, leaf_hash)
			select attempt_id, gen_random_uuid(), attempt_id, tenant_id, log_id, log_id, log_id, 1, 0, 'attempt', 'delivered', '', now(), 1, 'https://example.com/in',
			200, 0, false, leaf_hash from leaf_queue order by id limit 1`,
		`update leaf_queue set leaf_hash = sha256('') where attempt_id in (select id from attempts)`,
		`update leaf_queue set leaf = convert_to(E'\x1b]0;owned\x07', 'UTF8') where attempt_id not in (select id from attempts)`,
	} {
		_, err := owner.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	// No key is needed to give leaves their places; the newest head was signed a moment ago.
	sealing := activities.NewSealing(activities.SealingConfig{DB: s.engine, KeyDir: s.keyDir(), HighWaterDir: s.highWaterDir(), Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), s.log.ID))
}

func (s *sealedLog) variable(name string) string {
	for _, v := range s.env {
		if value, is := strings.CutPrefix(v, name+"="); is {
			return value
		}
	}
	return ""
}

func (s *sealedLog) keyDir() string       { return s.variable("LOG_KEY_DIR") }
func (s *sealedLog) highWaterDir() string { return s.variable("LOG_HIGH_WATER_DIR") }

func TestDeadLettersAreListedShownAndRetried(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 3)
	stdout, stderr, status := s.run(t, "kapsel log dead-letters list")
	require.Zero(t, status, stderr)
	require.Equal(t, "none\n", stdout)
	s.setAside(t)

	stdout, _, status = s.run(t, "kapsel log dead-letters list")
	require.Zero(t, status)
	require.Equal(t, 3, strings.Count(stdout, "\n"), stdout)
	stdout, _, status = s.run(t, "kapsel log dead-letters list --json")
	require.Zero(t, status)
	for number, line := range strings.Split(strings.TrimSpace(stdout), "\n") {
		var letter deadLetterJSON
		require.NoError(t, json.Unmarshal([]byte(line), &letter))
		require.EqualValues(t, number+1, letter.Number)
		require.Contains(t, letter.Reason, "hash doesn't fit the bytes")
		require.Empty(t, letter.Leaf)
		require.Nil(t, letter.ResolvedAt)
	}

	stdout, _, status = s.run(t, "kapsel log dead-letters show 2")
	require.Zero(t, status)
	require.Contains(t, stdout, `leaf       \x1b]0;owned\a`)
	require.NotContains(t, stdout, "\x1b")
	stdout, _, status = s.run(t, "kapsel log dead-letters show 1 --json")
	require.Zero(t, status)
	var shown struct{ Leaf, Secrets string }
	require.NoError(t, json.Unmarshal([]byte(stdout), &shown))
	leaf, err := base64.StdEncoding.DecodeString(shown.Leaf)
	require.NoError(t, err)
	_, err = verify.ParseLeaf(leaf)
	require.NoError(t, err)
	require.Empty(t, shown.Secrets)
	require.NotContains(t, stdout, "secret")

	stdout, stderr, status = s.run(t, "kapsel log dead-letters retry --all --by Ada")
	require.Equal(t, 1, status, "%s%s", stdout, stderr)
	require.Contains(t, stdout, "waits for its place in the log")
	require.Contains(t, stdout, "2  stays: no attempt")
	require.Contains(t, stderr, "1 stay as they are")
	stdout, _, status = s.run(t, "kapsel log dead-letters list --all")
	require.Zero(t, status)
	require.Contains(t, stdout, " queued by Ada")
	stdout, _, status = s.run(t, "kapsel log dead-letters retry 1 --json")
	require.Equal(t, 1, status)
	require.JSONEq(t, `{"number":1,"reason":"it was resolved before"}`, stdout)

	sealing := activities.NewSealing(activities.SealingConfig{DB: s.engine, KeyDir: s.keyDir(), HighWaterDir: s.highWaterDir(), Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), s.log.ID))
	stdout, _, status = s.run(t, "kapsel log fsck")
	require.Zero(t, status)
	require.Contains(t, stdout, "checked     4 leaves")

	for mistake, says := range map[string]string{
		"show":             "accepts 1 arg",
		"show 0":           "is not the number of a dead letter",
		"show 99":          "there is no dead letter 99",
		"retry":            "by their numbers, or all",
		"retry 1 --all":    "by their numbers, or all",
		"retry 99":         "there is no dead letter 99",
		"list --log x":     "--log",
		"list --unknown":   "unknown flag",
		"list superfluous": "accepts 0 arg",
	} {
		_, stderr, status := s.run(t, "kapsel log dead-letters "+mistake)
		require.Equal(t, 2, status, mistake)
		require.Contains(t, stderr, says, mistake)
	}
}
