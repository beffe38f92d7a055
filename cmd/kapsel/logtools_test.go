package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// sealedLog is a database with a log of published leaves of one tenant, and a directory to run commands in.
type sealedLog struct {
	dir, url string
	env      []string
	engine   *pgxpool.Pool
	log      admin.Log
	tenant   uuid.UUID
}

func newSealedLog(t *testing.T, leaves int) *sealedLog {
	t.Helper()
	s := &sealedLog{dir: t.TempDir(), url: postgrestest.New(t)}
	keys, highWater := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "high-water")
	owner := postgrestest.Pool(t, s.url, postgres.Owner)
	s.engine = postgrestest.Pool(t, s.url, postgres.Engine)
	var err error
	s.log, err = admin.CreateLog(t.Context(), owner, admin.LogConfig{Host: "kapsel.example", KeyDir: keys, HighWaterDir: highWater})
	require.NoError(t, err)
	s.tenant, err = admin.CreateTenant(t.Context(), owner, "Example Bank", s.log.ID)
	require.NoError(t, err)
	s.queue(t, leaves)
	sealing := activities.NewSealing(activities.SealingConfig{DB: s.engine, KeyDir: keys, HighWaterDir: highWater, Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), s.log.ID))
	s.env = append(os.Environ(), "DATABASE_URL="+s.url, "LOG_KEY_DIR="+keys, "LOG_HIGH_WATER_DIR="+highWater,
		"VKEY="+s.log.VKey, "TENANT="+id.Tenant.Format(s.tenant))
	return s
}

func (s *sealedLog) queue(t *testing.T, n int) {
	t.Helper()
	someHash := strings.Repeat("ab", 32)
	var rows [][]any
	for range n {
		attempt, secrets := id.New(), make([]byte, 64)
		_, _ = rand.Read(secrets)
		leaf, err := (&verify.Leaf{
			AttemptID: id.Attempt.Format(attempt), AttemptNumber: 1, AttemptedAt: verify.FormatTime(time.Now()), DeliveryID: id.Delivery.Format(id.New()),
			DestinationID: id.Destination.Format(id.New()), EndpointID: id.Endpoint.Format(id.New()), EndpointURL: "https://example.com/in",
			EventID: id.Event.Format(id.New()), HeadersHash: someHash, Kind: verify.KindAttempt, Nonce: attestation.NewNonce(), Origin: s.log.Origin,
			Outcome: verify.OutcomeDelivered, PayloadHash: someHash, ResponseHash: someHash, ResponseStatus: 200, Seq: 1,
			TenantID: id.Tenant.Format(s.tenant), URLHash: someHash, V: 1,
		}).Bytes()
		require.NoError(t, err)
		rows = append(rows, []any{s.log.ID, s.tenant, attempt, verify.LeafHash(leaf), leaf, secrets})
	}
	_, err := s.engine.CopyFrom(t.Context(), pgx.Identifier{"leaf_queue"},
		[]string{"log_id", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets"}, pgx.CopyFromRows(rows))
	require.NoError(t, err)
}

// run runs a shell script and returns its output and its status.
func (s *sealedLog) run(t *testing.T, script string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Dir, cmd.Env = s.dir, s.env
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), problems.String(), cmd.ProcessState.ExitCode()
}

var shellBlock = regexp.MustCompile("(?s)\n```sh\n(.*?)```\n")

// Every command of the guide does what the guide says, in its order; and so does its program.
func TestTheGuideToTheLogTools(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/guides/log-tools.md")
	require.NoError(t, err)
	s := newSealedLog(t, 600)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	s.env = append(s.env, "RECIPIENT="+identity.Recipient().String(), "FRESH="+emptyDatabase(t, s.url))

	blocks := shellBlock.FindAllStringSubmatch(string(guide), -1)
	require.Len(t, blocks, 4)
	says := []string{"verdict     sound\n", "checkpoint  size 600, was 0\n", "leaves      600, with indexes from 0 to below 600\n", "reproduced  1 heads, 4 tiles\n"}
	for i, block := range blocks {
		stdout, stderr, status := s.run(t, block[1])
		require.Zero(t, status, "%s%s%s", block[1], stdout, stderr)
		require.Contains(t, stdout, says[i], block[1])
	}

	program, err := os.ReadFile("../../audit/testdata/openbundle/main.go")
	require.NoError(t, err)
	require.Contains(t, string(guide), "\n```go\n"+string(program)+"```\n", "the guide's program is the one that is run here")
	identities := filepath.Join(s.dir, "key.txt")
	require.NoError(t, os.WriteFile(identities, []byte(identity.String()+"\n"), 0o600))
	bundles, err := filepath.Glob(filepath.Join(s.dir, "bundles", "ten_*", "*.jsonl.age"))
	require.NoError(t, err)
	require.Len(t, bundles, 1)
	bundle, err := os.Open(bundles[0])
	require.NoError(t, err)
	defer func() { _ = bundle.Close() }()
	cmd := exec.CommandContext(t.Context(), "go", "run", "../../audit/testdata/openbundle", s.log.VKey, identities)
	cmd.Stdin = bundle
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "600 leaves verified, 0 erased\n", string(out))
}

// The status tells a log that isn't sound from one that couldn't be checked.
func TestTheStatusOfLogTools(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 300)
	stdout, _, status := s.run(t, "kapsel log fsck --json")
	require.Zero(t, status)
	var sound struct{ Report audit.Report }
	require.NoError(t, json.Unmarshal([]byte(stdout), &sound))
	require.True(t, sound.Report.Sound)
	require.EqualValues(t, 300, sound.Report.Leaves)
	_, _, status = s.run(t, "kapsel log export mirror && cp mirror/checkpoint kept")
	require.Zero(t, status)
	_, _, status = s.run(t, "kapsel log fsck --checkpoint kept")
	require.Zero(t, status)

	conn, err := pgx.Connect(t.Context(), s.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.Exec(t.Context(), "set session_replication_role = replica; update merkle_leaves set leaf = 'x' where leaf_index = 7; "+
		"update merkle_tiles set hashes = set_byte(hashes, 0, 255 - get_byte(hashes, 0)) where level = 0")
	require.NoError(t, err)
	stdout, stderr, status := s.run(t, "kapsel log fsck")
	require.Equal(t, 1, status)
	require.Contains(t, stdout, "\nleaf_bytes: leaf 7: the bytes hash to ")
	require.Contains(t, stdout, "verdict     NOT SOUND: 3 faults\n")
	require.Equal(t, "kapsel: the log isn't sound: 3 faults\n", stderr)
	stdout, _, status = s.run(t, "kapsel log fsck --json")
	require.Equal(t, 1, status)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 4)
	var first struct{ Fault audit.Fault }
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &first))
	require.Equal(t, audit.TileHash, first.Fault.Kind)
	require.Equal(t, "0/0", first.Fault.Tile)

	_, stderr, status = s.run(t, "kapsel log export second")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "see `kapsel log fsck`")
	s.env = append(s.env, "TARGET_DATABASE_URL="+postgrestest.New(t))
	_, stderr, status = s.run(t, "kapsel log rebuild --mirror mirror")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "leaf 7: the bytes hash to")
	s.env = append(s.env, "TARGET_DATABASE_URL="+s.url)
	_, stderr, status = s.run(t, "kapsel log rebuild --mirror mirror")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "TARGET_DATABASE_URL must be a fresh database")
}

// What was forgotten or can't go together is said before anything is read or written.
func TestMistakesWithLogTools(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 3)
	for arguments, says := range map[string]string{
		"fsck extra":         "accepts 0 arg(s), received 1",
		"fsck --nonsense":    "unknown flag: --nonsense",
		"fsck --log log_foo": `--log: "log_foo" is not an ID`,
		"fsck --log log_01h455vb4pex5vsknk084sn02q":           "there is no log log_01h455vb4pex5vsknk084sn02q",
		"fsck --vkey nonsense":                                "--vkey: ",
		"fsck --checkpoint absent":                            "--checkpoint: open absent: no such file",
		"fsck --state .":                                      "read state: ",
		"export":                                              "accepts 1 arg(s), received 0",
		"export mirror --plain":                               "name the tenant with --tenant",
		"export mirror --tenant $TENANT":                      "with --bundles",
		"export mirror --tenant $TENANT --bundles b":          "say which",
		"export m --tenant $TENANT --bundles m/b --plain":     "lies in the directory that everybody may read",
		"export m --tenant $TENANT --bundles ./m --plain":     "lies in the directory that everybody may read",
		"export m --tenant ten_x --bundles b --plain":         `--tenant: "ten_x" is not an ID`,
		"export m --tenant $TENANT --bundles b --recipient x": "--recipient: ",
		"rebuild":                 "name the directory that `kapsel log export` wrote with --mirror",
		"rebuild --mirror absent": "TARGET_DATABASE_URL is not set",
	} {
		_, stderr, status := s.run(t, "kapsel log "+arguments)
		require.Equal(t, 2, status, arguments)
		require.Contains(t, stderr, says, arguments)
	}
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	_, stderr, status := s.run(t, "kapsel log export m --tenant ten_01h455vb4pex5vsknk084sn02q --bundles b --plain")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "there is no tenant ten_01h455vb4pex5vsknk084sn02q")
	require.NoDirExists(t, filepath.Join(s.dir, "b"))
}
