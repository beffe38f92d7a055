package admin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// LogConfig says how to make a log.
type LogConfig struct {
	// Host is the public host, and port if it isn't the default one, under which the log is read: a part of its origin,
	// which can't change later.
	Host string
	// KeyDir gets <log>.seed, mode 0600; HighWaterDir gets <log>.highwater. Both are made if missing, mode 0700.
	KeyDir, HighWaterDir string
}

// Log is a log that was made.
type Log struct {
	ID        uuid.UUID
	Origin    string
	PublicKey []byte // Ed25519, 32 bytes
	VKey      string // as C2SP signed-note has it
}

// host is what can stand before "/log/" in a log's name: a name or an IPv4 address, and perhaps a port.
var host = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[1-9][0-9]{0,4})?$`)

// CreateLog makes an empty log with a key of its own. The files come first, so that there is no log without its key and
// its high-water record; a crash in between leaves files that nobody reads.
func CreateLog(ctx context.Context, owner *pgxpool.Pool, config LogConfig) (Log, error) {
	if config.KeyDir == "" || config.HighWaterDir == "" {
		return Log{}, errors.New("a log needs a directory for its key and one for its high-water record")
	}
	if !host.MatchString(config.Host) {
		return Log{}, fmt.Errorf("a log's host is a host name in lower case, and a port if it isn't the default one, such as webhooks.example.com; not %q", config.Host)
	}
	log := Log{ID: id.New()}
	name := id.Log.Format(log.ID)
	log.Origin = config.Host + "/log/" + name
	if err := verify.CheckOrigin(log.Origin); err != nil {
		return Log{}, fmt.Errorf("make log: %w", err)
	}
	for _, dir := range []string{config.KeyDir, config.HighWaterDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return Log{}, fmt.Errorf("make log: %w", err)
		}
	}
	signer, err := attestation.LoadOrCreateSigner(filepath.Join(config.KeyDir, name+".seed"), log.Origin)
	if err != nil {
		return Log{}, fmt.Errorf("make log: %w", err)
	}
	if err := attestation.NewHighWater(filepath.Join(config.HighWaterDir, name+".highwater"), log.Origin).Init(); err != nil {
		return Log{}, fmt.Errorf("make log: %w", err)
	}
	log.PublicKey = signer.PublicKey()
	log.VKey = verify.VKey(log.Origin, signer.PublicKey())
	if err := pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error { return insertLog(ctx, db.New(tx), log) }); err != nil {
		return Log{}, fmt.Errorf("make log: %w", err)
	}
	return log, nil
}

// EnsureLog makes a log unless there is an open one, and tells whether it made it. Of several that call it at once, one does.
func EnsureLog(ctx context.Context, owner *pgxpool.Pool, config LogConfig) (log Log, made bool, err error) {
	err = pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtext('kapsel: the first log'))"); err != nil {
			return err
		}
		q := db.New(tx)
		open, err := q.ListOpenLogs(ctx)
		if err != nil {
			return err
		}
		if len(open) == 0 {
			made = true
			log, err = CreateLog(ctx, owner, config)
			return err
		}
		log, err = openLog(ctx, q, open[0])
		return err
	})
	if err != nil {
		return Log{}, false, fmt.Errorf("ensure that there is a log: %w", err)
	}
	return log, made, nil
}

func openLog(ctx context.Context, q *db.Queries, row db.ListOpenLogsRow) (Log, error) {
	keys, err := q.LogKeys(ctx, row.ID)
	if err != nil {
		return Log{}, err
	}
	for _, key := range keys {
		if key.Purpose == "log" && key.NotAfter == nil {
			return Log{ID: row.ID, Origin: row.Origin, PublicKey: key.PublicKey, VKey: verify.VKey(row.Origin, key.PublicKey)}, nil
		}
	}
	return Log{}, fmt.Errorf("log %s has no key in use", id.Log.Format(row.ID))
}

func insertLog(ctx context.Context, q *db.Queries, log Log) error {
	keyID := sha256.Sum256(log.PublicKey)
	if err := q.InsertLog(ctx, log.ID, log.Origin); err != nil {
		return err
	}
	if err := q.InsertTreeRoot(ctx, log.ID, 0, verify.EmptyRoot()); err != nil {
		return err
	}
	if err := q.InsertLogHead(ctx, log.ID, 0, verify.EmptyRoot()); err != nil {
		return err
	}
	return q.InsertAttestationKey(ctx, log.ID, keyID[:], log.PublicKey, "log")
}
