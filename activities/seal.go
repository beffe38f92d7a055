package activities

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
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
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/verify"
)

const (
	// sequenceLimit is how many leaves one sequencing transaction takes.
	sequenceLimit = 2000
	// leavesPerCore is how many leaves are checked by one core before another one is worth its while.
	leavesPerCore = 100
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
	// FindSigner finds what signs with a key of a log (a TypeID). It may take long, and fail. Default: the seeds in KeyDir.
	FindSigner func(log, origin string, key ed25519.PublicKey) (*attestation.Signer, error)
	// Metrics is where sealing registers its metrics. Default: nowhere.
	Metrics prometheus.Registerer
	// Tracing is told of each leaf that gets an index. nil: nobody is.
	Tracing *tracing.Tracer
	Log     *zap.Logger
}

// Sealing grows logs and signs their heads.
type Sealing struct {
	config  SealingConfig
	metrics *sealMetrics
	growth  *logMetrics

	mu         sync.Mutex
	wake       chan struct{} // closed and replaced to wake the loops of all logs
	publishers map[uuid.UUID]*publisher
}

// NewSealing returns what seals by config.
func NewSealing(config SealingConfig) *Sealing {
	if config.FindSigner == nil {
		config.FindSigner = func(log, origin string, key ed25519.PublicKey) (*attestation.Signer, error) {
			return attestation.FindSigner(config.KeyDir, log, origin, key)
		}
	}
	return &Sealing{
		config: config, metrics: newSealMetrics(config.Metrics), growth: newLogMetrics(config.Metrics),
		wake: make(chan struct{}), publishers: map[uuid.UUID]*publisher{},
	}
}

// publisher is the one of this process that publishes a log's heads.
func (s *Sealing) publisher(log uuid.UUID) *publisher {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.publishers[log] == nil {
		s.publishers[log] = newPublisher(s.metrics, s.config.Log.With(zap.String("log_id", id.Log.Format(log))))
	}
	return s.publishers[log]
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
	sealing   *Sealing
	db        *pgxpool.Pool
	log       uuid.UUID
	name      string // TypeID
	origin    string
	publisher *publisher
	highWater *attestation.HighWater
	logger    *zap.Logger
	growth    *logMetrics
	last      int64     // ID after which the queue is read
	scanned   time.Time // when the queue was last read from its beginning
	traced    []tracedLeaf

	// What signs belongs to the publisher's call that is under way.
	key    [32]byte // SHA-256 of the public key
	signer *attestation.Signer
	former []formerKey
}

// LogClosed is the type of the error with which SealLog ends for a log that takes no more leaves.
const LogClosed = "LogClosed"

// SealLog grows a log until its time is over: it sequences what is queued, signs heads by the cadence, and waits for
// more. What keeps heads from being signed stops nothing else: see publisher. Timeout: In.For and a minute; heartbeat timeout
// 10 s. Retried without end, slower and slower, because what stops it needs a person: a root that doesn't fit its tiles, a log below the
// high-water record; but not for a log that is closed (LogClosed). It may run twice at once, since each step is a transaction
// under the log's lock.
func (s *Sealing) SealLog(ctx context.Context, in SealInput) error {
	log, err := id.Log.Parse(in.LogID)
	if err != nil {
		return temporal.NewNonRetryableApplicationError("log ID", "Input", err)
	}
	err = s.sealLog(ctx, log, in.For)
	if errors.Is(err, postgres.ErrLogClosed) {
		return temporal.NewNonRetryableApplicationError("the log is closed", LogClosed, err)
	}
	return err
}

func (s *Sealing) sealLog(ctx context.Context, log uuid.UUID, duration time.Duration) error {
	one, err := s.open(ctx, log)
	if err != nil {
		return err
	}
	defer one.publisher.settle(publishFor)
	end := time.NewTimer(duration)
	defer end.Stop()
	tick := time.NewTicker(sealTick)
	defer tick.Stop()
	for {
		activity.RecordHeartbeat(ctx)
		poked := s.poked() // before the work: what is queued during it wakes the loop again
		err := one.sequence(ctx, false, func(bool) error {
			one.publisher.try(ctx, func(ctx context.Context, check bool) error { return one.publish(ctx, check, false) })
			return nil
		})
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

// SealNow sequences all that is queued for a log and signs its head, whatever the cadence and the breaker say. Leaves are in the
// log also if it fails for want of a signature.
func (s *Sealing) SealNow(ctx context.Context, log uuid.UUID) error {
	one, err := s.open(ctx, log)
	if err != nil {
		return err
	}
	return one.sequence(ctx, true, func(last bool) error {
		return one.publisher.do(ctx, func(ctx context.Context, check bool) error { return one.publish(ctx, check, last) })
	})
}

// open looks a log up. Its key isn't needed before a head is due.
func (s *Sealing) open(ctx context.Context, log uuid.UUID) (*sealer, error) {
	name := id.Log.Format(log)
	origin, err := postgres.OpenLog(ctx, s.config.DB, log)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	return &sealer{
		sealing:   s,
		db:        s.config.DB,
		log:       log,
		name:      name,
		origin:    origin,
		publisher: s.publisher(log),
		highWater: attestation.NewHighWater(filepath.Join(s.config.HighWaterDir, name+".highwater"), origin),
		logger:    s.config.Log.With(zap.String("log_id", name)),
		growth:    s.growth,
	}, nil
}

// sequence sequences until the queue is empty; after each batch it calls then, which is told whether it was the last.
func (s *sealer) sequence(ctx context.Context, whole bool, then func(last bool) error) error {
	if whole || time.Since(s.scanned) > fullScanEvery {
		s.last, s.scanned = 0, time.Now()
	}
	for {
		start := time.Now()
		done, err := postgres.Sequence(ctx, s.db, s.log, s.last, sequenceLimit, s.grow)
		if err != nil {
			return err
		}
		s.growth.sequenced(start, done.Taken-done.Rejected)
		s.tellSealed(start, done.TreeSize, done.Taken-done.Rejected)
		s.last = max(s.last, done.LastID-rewind)
		if done.Rejected > 0 {
			s.sealing.metrics.aside.Add(float64(done.Rejected))
			s.logger.Error("leaves set aside in attestation_dead_letters; `kapsel log dead-letters` shows them", zap.Int("leaves", done.Rejected))
		}
		last := done.Taken < sequenceLimit
		if err := then(last); err != nil || last {
			return err
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
	s.traced = nil // of a transaction that wasn't committed
	var leafHashes [][]byte
	chosen := map[uuid.UUID][]byte{}
	read := checkLeaves(batch.Leaves, s.origin)
	for i, leaf := range batch.Leaves {
		parsed, reason := read[i].leaf, read[i].reason
		if reason == "" {
			hash, again := chosen[leaf.AttemptID]
			switch {
			case again && bytes.Equal(hash, leaf.Hash):
				continue // queued twice
			case again:
				reason = "the attempt has another leaf, which was queued before"
			}
		}
		if reason != "" {
			growth.Rejected = append(growth.Rejected, postgres.RejectedLeaf{QueuedLeaf: leaf, Reason: reason})
			continue
		}
		chosen[leaf.AttemptID] = leaf.Hash
		growth.Accepted = append(growth.Accepted, leaf)
		leafHashes = append(leafHashes, leaf.Hash)
		if traced, ok := s.traceLeaf(parsed, batch.TreeSize+uint64(len(leafHashes))-1); ok {
			s.traced = append(s.traced, traced)
		}
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

// checkedLeaf is a leaf of the queue, and what there is against it.
type checkedLeaf struct {
	leaf   *verify.Leaf
	reason string
}

// checkLeaves reads leaves as readLeaf does, on all cores: that is most of what sealing computes.
func checkLeaves(leaves []postgres.QueuedLeaf, origin string) []checkedLeaf {
	read := make([]checkedLeaf, len(leaves))
	part := max(len(leaves)/runtime.GOMAXPROCS(0)+1, leavesPerCore)
	var parts sync.WaitGroup
	for from := 0; from < len(leaves); from += part {
		parts.Go(func() {
			for i := from; i < min(from+part, len(leaves)); i++ {
				read[i].leaf, read[i].reason = readLeaf(leaves[i], origin)
			}
		})
	}
	parts.Wait()
	return read
}

// rejectLeaf is what readLeaf says against a leaf.
func rejectLeaf(queued postgres.QueuedLeaf, origin string) string {
	_, reason := readLeaf(queued, origin)
	return reason
}

// readLeaf reads a leaf, and says why a leaf must not get an index in the log named origin; empty if it may. Its bytes must hash to what was
// recorded, and be a leaf of this attempt and this log.
func readLeaf(queued postgres.QueuedLeaf, origin string) (leaf *verify.Leaf, reason string) {
	if !bytes.Equal(verify.LeafHash(queued.Bytes), queued.Hash) {
		return nil, "hash doesn't fit the bytes"
	}
	leaf, err := verify.ParseLeaf(queued.Bytes)
	switch {
	case len(queued.Secrets) != 0 && len(queued.Secrets) != 2*attestation.SecretSize: // none: the payload is erased
		return leaf, "secrets have the wrong length"
	case err != nil:
		return leaf, err.Error()
	case !concerns(leaf, queued.AttemptID):
		return leaf, "leaf is of another attempt"
	case leaf.TenantID != id.Tenant.Format(queued.TenantID):
		return leaf, "leaf is of another tenant"
	case leaf.Origin != origin:
		return leaf, "leaf is of another log"
	case queued.Recorded != nil && !bytes.Equal(queued.Recorded, queued.Hash):
		return leaf, "hash isn't the one that the attempt recorded"
	}
	return leaf, ""
}

// concerns reports whether a leaf is of the attempt, or attests the acceptance of the event, with this ID.
func concerns(leaf *verify.Leaf, subject uuid.UUID) bool {
	if leaf.Kind == verify.KindAccepted {
		return leaf.AttemptID == "" && leaf.EventID == id.Event.Format(subject)
	}
	return leaf.AttemptID == id.Attempt.Format(subject)
}

// publish signs the head that is due, if one is; with force until none is, since the first may be an older one that a crash
// left unsigned. The order matters: the unsigned head is committed (a crash here: it is signed by the next call, with the
// same bytes), then the high-water record is advanced (a crash here: the same head is accepted again), then it is signed
// twice, and both signatures become visible in one update. With check, because it failed before, all but the database is tried
// first, so that no head is prepared in vain, of which each leaves a row behind.
func (s *sealer) publish(ctx context.Context, check, force bool) error {
	err := s.publishWith(ctx, check, force)
	if errors.Is(err, postgres.ErrKeyChanged) {
		s.signer = nil
		err = s.publishWith(ctx, check, force) // with the new key, if this worker has it
	}
	if err != nil {
		s.signer = nil // the next call looks for the key anew
	}
	return err
}

func (s *sealer) publishWith(ctx context.Context, check, force bool) error {
	if err := s.findKeys(ctx); err != nil {
		return err
	}
	if check {
		if err := attestation.Check(ctx, s.highWater, s.signer); err != nil {
			return err
		}
	}
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

// findKeys finds what signs with the log's key, and with those before it.
func (s *sealer) findKeys(ctx context.Context) error {
	if s.signer != nil {
		return nil
	}
	row, err := db.New(s.db).LogByID(ctx, s.log)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("find key of log %s: %w", s.name, postgres.ErrLogClosed) // it was there when it was opened
	}
	if err != nil {
		return fmt.Errorf("find key of log %s: %w", s.name, err)
	}
	signer, err := s.sealing.config.FindSigner(s.name, row.Origin, row.PublicKey)
	if err != nil {
		return fmt.Errorf("find key of log %s: %w", s.name, err)
	}
	former, err := s.sealing.formerKeys(ctx, s.log, row.Origin)
	if err != nil {
		return fmt.Errorf("find earlier keys of log %s: %w", s.name, err)
	}
	s.signer, s.former, s.key = signer, former, sha256.Sum256(row.PublicKey)
	return nil
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
