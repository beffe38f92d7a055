package activities

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

const (
	// sequenceLimit is how many leaves one sequencing transaction takes.
	sequenceLimit = 2000
	// sealPause is the least time between two looks at the queue, so that what comes one by one is sequenced together.
	sealPause = 100 * time.Millisecond
	// sealTick is how often the loop looks for work by itself.
	sealTick = time.Second
	// rewind is how many queue IDs before the last one taken are read again: leaves become visible in the order of their
	// commits, not of their IDs. And so often the queue is read from its beginning, which is what makes it right.
	rewind        = 500
	fullScanEvery = 10 * time.Second
)

// SealInput names a log, and how long to work on it.
type SealInput struct {
	LogID string
	For   time.Duration
}

// SealingConfig says with what to seal.
type SealingConfig struct {
	DB *pgxpool.Pool // role kapsel_engine
	// KeyDir holds <log>.seed, HighWaterDir <log>.highwater.
	KeyDir, HighWaterDir string
	// Metrics is where sealing registers its metrics. Default: nowhere.
	Metrics prometheus.Registerer
	Log     *zap.Logger
}

// Sealing grows logs and signs their heads.
type Sealing struct {
	config SealingConfig
	growth *logMetrics

	mu   sync.Mutex
	wake chan struct{} // closed and replaced to wake the loops of all logs
}

// NewSealing returns what seals by config.
func NewSealing(config SealingConfig) *Sealing {
	return &Sealing{config: config, growth: newLogMetrics(config.Metrics), wake: make(chan struct{})}
}

// Poke tells the loops of this process that leaves were queued.
func (s *Sealing) Poke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.wake)
	s.wake = make(chan struct{})
}

func (s *Sealing) poked() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wake
}

// sealer grows one log.
type sealer struct {
	db        *pgxpool.Pool
	log       uuid.UUID
	key       [32]byte // SHA-256 of the public key
	signer    *attestation.Signer
	former    []formerKey
	highWater *attestation.HighWater
	logger    *zap.Logger
	growth    *logMetrics
	last      int64     // ID after which the queue is read
	scanned   time.Time // when the queue was last read from its beginning
}

// SealLog grows a log until its time is over: it sequences what is queued, signs heads by the cadence, and waits for
// more. Timeout: In.For and a minute; heartbeat timeout 10 s. Retried without end, slower and slower, because what
// stops it needs a person: a root that doesn't fit its tiles, a head below the high-water record, a key that isn't the
// log's. It may run twice at once, since each step is a transaction under the log's lock.
func (s *Sealing) SealLog(ctx context.Context, in SealInput) error {
	log, err := id.Log.Parse(in.LogID)
	if err != nil {
		return temporal.NewNonRetryableApplicationError("log ID", "Input", err)
	}
	one, err := s.open(ctx, log)
	if err != nil {
		return err
	}
	end := time.NewTimer(in.For)
	defer end.Stop()
	tick := time.NewTicker(sealTick)
	defer tick.Stop()
	for {
		activity.RecordHeartbeat(ctx)
		poked := s.poked() // before the work: what is queued during it wakes the loop again
		err := one.seal(ctx, false)
		if errors.Is(err, postgres.ErrKeyChanged) {
			one, err = s.open(ctx, log) // goes on with the new key, and stops where this worker doesn't have it
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-activity.GetWorkerStopChannel(ctx):
		case <-time.After(sealPause):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-activity.GetWorkerStopChannel(ctx):
			return nil
		case <-end.C:
			return nil
		case <-poked:
		case <-tick.C:
		}
	}
}

// SealNow sequences all that is queued for a log and signs its head, whatever the cadence says.
func (s *Sealing) SealNow(ctx context.Context, log uuid.UUID) error {
	one, err := s.open(ctx, log)
	if err != nil {
		return err
	}
	err = one.seal(ctx, true)
	if errors.Is(err, postgres.ErrKeyChanged) {
		if one, err = s.open(ctx, log); err == nil {
			err = one.seal(ctx, true)
		}
	}
	return err
}

// open loads a log's key and makes sure that it is the log's.
func (s *Sealing) open(ctx context.Context, log uuid.UUID) (*sealer, error) {
	row, err := db.New(s.config.DB).LogByID(ctx, log)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("open log %s: %w", id.Log.Format(log), postgres.ErrNoLog)
	}
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", id.Log.Format(log), err)
	}
	name := id.Log.Format(log)
	signer, err := attestation.FindSigner(s.config.KeyDir, name, row.Origin, row.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	former, err := s.formerKeys(ctx, log, row.Origin)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	return &sealer{
		former:    former,
		db:        s.config.DB,
		log:       log,
		key:       sha256.Sum256(row.PublicKey),
		signer:    signer,
		highWater: attestation.NewHighWater(filepath.Join(s.config.HighWaterDir, name+".highwater"), row.Origin),
		logger:    s.config.Log.With(zap.String("log_id", name)),
		growth:    s.growth,
	}, nil
}

// seal sequences until the queue is empty, and publishes if a head is due.
func (s *sealer) seal(ctx context.Context, force bool) error {
	if force || time.Since(s.scanned) > fullScanEvery {
		s.last, s.scanned = 0, time.Now()
	}
	for {
		start := time.Now()
		done, err := postgres.Sequence(ctx, s.db, s.log, s.last, sequenceLimit, s.grow)
		if err != nil {
			return err
		}
		s.growth.sequenced(start, done.Taken-done.Rejected)
		s.last = max(s.last, done.LastID-rewind)
		if done.Rejected > 0 {
			s.logger.Error("leaves set aside in attestation_dead_letters", zap.Int("leaves", done.Rejected))
		}
		if err := s.publish(ctx, force && done.Taken < sequenceLimit); err != nil {
			return err
		}
		if done.Taken < sequenceLimit {
			return nil
		}
		if activity.IsActivity(ctx) {
			activity.RecordHeartbeat(ctx)
		}
	}
}

// grow checks every leaf before any gets an index, and appends those that are right.
func (s *sealer) grow(ctx context.Context, batch postgres.Batch) (postgres.Growth, error) {
	if err := s.highWater.Continues(ctx, batch.RootOf); err != nil {
		return postgres.Growth{}, err
	}
	tree, err := attestation.OpenStoredTree(ctx, batch.TreeSize, batch.RootHash, batch.Tiles)
	if err != nil {
		return postgres.Growth{}, err
	}
	growth := postgres.Growth{TreeSize: batch.TreeSize, RootHash: batch.RootHash}
	var leafHashes [][]byte
	for _, leaf := range batch.Leaves {
		if reason := s.reject(leaf); reason != "" {
			growth.Rejected = append(growth.Rejected, postgres.RejectedLeaf{QueuedLeaf: leaf, Reason: reason})
			continue
		}
		growth.Accepted = append(growth.Accepted, leaf)
		leafHashes = append(leafHashes, leaf.Hash)
	}
	if len(leafHashes) == 0 {
		return growth, nil
	}
	grown, err := tree.Append(leafHashes)
	if err != nil {
		return postgres.Growth{}, fmt.Errorf("append leaves: %w", err)
	}
	growth.TreeSize, growth.RootHash = grown.Size, grown.Root
	for _, t := range grown.Tiles {
		growth.Tiles = append(growth.Tiles, postgres.Tile{TileID: postgres.TileID(t.ID()), Hashes: t.Hashes})
	}
	return growth, nil
}

// reject says why a leaf must not get an index; empty if it may. Its bytes must hash to what was recorded, and be a
// leaf of this attempt and this log.
func (s *sealer) reject(queued postgres.QueuedLeaf) string {
	if !bytes.Equal(verify.LeafHash(queued.Bytes), queued.Hash) {
		return "hash doesn't fit the bytes"
	}
	leaf, err := verify.ParseLeaf(queued.Bytes)
	switch {
	case len(queued.Secrets) != 0 && len(queued.Secrets) != 2*attestation.SecretSize: // none: the payload is erased
		return "secrets have the wrong length"
	case err != nil:
		return err.Error()
	case leaf.AttemptID != id.Attempt.Format(queued.AttemptID):
		return "leaf is of another attempt"
	case leaf.TenantID != id.Tenant.Format(queued.TenantID):
		return "leaf is of another tenant"
	case leaf.Origin != s.signer.Origin():
		return "leaf is of another log"
	}
	return ""
}

// publish signs the head that is due, if one is; with force until none is, since the first may be an older one that a crash
// left unsigned. The order matters: the unsigned head is committed (a crash here: it is signed by the next call, with the
// same bytes), then the high-water record is advanced (a crash here: the same head is accepted again), then it is signed
// twice, and both signatures become visible in one update.
func (s *sealer) publish(ctx context.Context, force bool) error {
	for {
		head, err := postgres.NextHead(ctx, s.db, s.log, s.key, postgres.DefaultCadence, force)
		if err != nil || head == nil {
			return err
		}
		if err := s.sign(ctx, *head); err != nil {
			return err
		}
		if !force {
			return nil
		}
	}
}

func (s *sealer) sign(ctx context.Context, head postgres.Head) error {
	rootOf := func(ctx context.Context, size uint64) ([]byte, error) { return postgres.RootOf(ctx, s.db, s.log, size) }
	err := s.highWater.Continues(ctx, rootOf)
	if err == nil {
		err = s.highWater.Advance(ctx, attestation.Head(head))
	}
	if errors.Is(err, attestation.ErrHighWaterConflict) {
		if overtaken, lookErr := postgres.Overtaken(ctx, s.db, s.log, head); overtaken || lookErr != nil {
			return lookErr // another sealer has published a later head
		}
	}
	if err != nil {
		return err
	}
	sth, checkpoint, err := attestation.SignHead(attestation.Head(head), s.signer, s.overlapping(head.Timestamp)...)
	if err != nil {
		return err
	}
	stored, err := postgres.StoreSignatures(ctx, s.db, s.log, head, sth.Signature, checkpoint)
	if stored {
		s.growth.published(head.Timestamp)
		s.logger.Info("head published", zap.Uint64("tree_size", head.TreeSize))
	}
	return err
}
