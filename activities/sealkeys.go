package activities

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// formerKey is a key that the log gave up, and what signs with it as long as checkpoints carry its lines.
type formerKey struct {
	attestation.FormerKey
	signer *attestation.Signer // nil if its lines are over, or its seed isn't here
}

// in says whether the key is one of these.
func (f formerKey) in(keys []ed25519.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(f.Key) })
}

// formerKeys lists the keys that a log gave up, oldest first. A missing seed among them stops nothing, since it may have
// been destroyed on purpose, or be lost for good; whoever trusts only that key then has to change to the new one early.
func (s *Sealing) formerKeys(ctx context.Context, log uuid.UUID, origin string) ([]formerKey, error) {
	rows, err := db.New(s.config.DB).KeyTransitions(ctx, log)
	if err != nil {
		return nil, err
	}
	former := make([]attestation.FormerKey, len(rows))
	for i, row := range rows {
		former[i] = attestation.FormerKey{Key: row.OldKey, Reason: row.Reason, Until: row.ChangedAt.UnixMilli()}
	}
	keys := make([]formerKey, len(former))
	needed := attestation.Overlapping(former, time.Now().UnixMilli())
	for i, former := range former {
		keys[i].FormerKey = former
		f := &keys[i]
		if !f.in(needed) {
			continue
		}
		f.signer, err = s.config.FindSigner(id.Log.Format(log), origin, f.Key)
		if errors.Is(err, attestation.ErrNoSeed) {
			s.config.Log.Warn("checkpoints won't carry the lines of the log's earlier key: its seed isn't in LOG_KEY_DIR",
				zap.String("log_id", id.Log.Format(log)), zap.Time("needed_until", time.UnixMilli(f.Until).Add(attestation.Overlap).UTC()))
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// overlapping returns what signs a head of the given time beside the log's key. The head's own time decides, so that
// signing it again gives the same bytes.
func (s *sealer) overlapping(timestamp int64) []*attestation.Signer {
	former := make([]attestation.FormerKey, len(s.former))
	for i, f := range s.former {
		former[i] = f.FormerKey
	}
	needed := attestation.Overlapping(former, timestamp)
	var signers []*attestation.Signer
	for _, f := range s.former {
		if f.signer != nil && f.in(needed) {
			signers = append(signers, f.signer)
		}
	}
	return signers
}
