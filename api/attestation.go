package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// cadence is how long an attempt waits for a signed tree head at most, as long as all goes well.
const cadence = 10 * time.Second

// proven is a leaf with a published head that covers it and the path between them.
type proven struct {
	leaf attemptLeaf
	head publishedHead
	key  []byte // signed the head
	path [][]byte
	// history is how the log's key changed, each change with the proof that connects it with head.
	history []verify.PackageTransition
}

// attemptLeaf is the leaf of an attempt and its place.
type attemptLeaf struct {
	db.PlaceOfAttemptRow
	db.LeafAtRow
}

// notSealedError says that no published head covers an attempt yet, and when to come back.
type notSealedError struct{ after time.Duration }

func (notSealedError) Error() string { return "no signed tree head covers the attempt yet" }

func (n notSealedError) answer(attempt string) openapi.PendingJSONResponse {
	wait := inSeconds(n.after)
	return openapi.PendingJSONResponse{
		Body: openapi.Pending{
			Status: openapi.PendingStatusPending, AttemptID: attempt, RetryAfterSeconds: wait,
			Detail: fmt.Sprintf("The attempt is recorded and waits for a signed tree head. Come back in %d s.", wait),
		},
		Headers: openapi.PendingResponseHeaders{RetryAfter: &wait},
	}
}

// GetProof reads the inclusion proof of an attempt.
func (s *Server) GetProof(ctx context.Context, request openapi.GetProofRequestObject) (openapi.GetProofResponseObject, error) {
	p, err := s.prove(ctx, request.AttemptID, request.Params.TreeSize)
	var wait notSealedError
	if errors.As(err, &wait) {
		return openapi.GetProof202JSONResponse{PendingJSONResponse: wait.answer(request.AttemptID)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("prove attempt: %w", err)
	}
	answer := openapi.InclusionProof{
		AttemptID: request.AttemptID, LeafIndex: p.leaf.LeafIndex, LeafHash: hex.EncodeToString(p.leaf.LeafHash),
		InclusionProof: hexAll(p.path), Sth: p.head.answer(db.PublicLogRow{ID: p.leaf.LogID, Origin: p.leaf.Origin}),
	}
	if p.leaf.Leaf != nil {
		leaf := base64.StdEncoding.EncodeToString(p.leaf.Leaf)
		answer.Leaf = &leaf
	}
	return conditionalJSON(answer, "private, no-cache", request.Params.IfNoneMatch)
}

// DownloadProof hands out the proof package, or the text of C2SP. It was verified before it leaves: see attestation.Evidence.
func (s *Server) DownloadProof(ctx context.Context, request openapi.DownloadProofRequestObject) (openapi.DownloadProofResponseObject, error) {
	answer, err := s.download(ctx, request.AttemptID, request.Params.Format, request.Params.TreeSize, request.Params.IfNoneMatch)
	var wait notSealedError
	if errors.As(err, &wait) {
		return openapi.DownloadProof202JSONResponse{PendingJSONResponse: wait.answer(request.AttemptID)}, nil
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// download writes the file that proves a leaf, in the format that was asked for.
func (s *Server) download(ctx context.Context, proven string, asked *string, treeSize *int64, ifNoneMatch *string) (*conditional, error) {
	name := "json"
	if asked != nil {
		name = *asked
	}
	format, known := proofFormats[name]
	if !known {
		return nil, invalidParameter("format", "must be json or tlog-proof")
	}
	p, err := s.prove(ctx, proven, treeSize)
	if err != nil {
		return nil, fmt.Errorf("prove attempt: %w", err)
	}
	if p.leaf.Leaf == nil && !format.withoutLeaf {
		return nil, &problem{kind: kindGone, detail: "The leaf has been erased. Its hash and its proof remain: see /api/v1/attestation/proof, or " +
			"ask for format=tlog-proof, which whoever kept the leaf can verify."}
	}
	evidence, err := p.evidence()
	if err != nil {
		return nil, err
	}
	file, err := format.write(evidence)
	if err != nil {
		return nil, err
	}
	answer := newConditional(file, format.mediaType, "private, no-cache", ifNoneMatch) // later it may hold anchors
	answer.filename = proven + format.ending
	return answer, nil
}

// proofFormat is a form in which evidence is handed out as a file.
type proofFormat struct {
	mediaType, ending string
	write             func(attestation.Evidence) ([]byte, error)
	withoutLeaf       bool // it can be written of a leaf whose bytes are erased
}

var proofFormats = map[string]proofFormat{
	"json":       {verify.MediaType, ".proof.json", attestation.Evidence.Package, false},
	"tlog-proof": {"text/plain; charset=utf-8", ".tlog-proof", attestation.Evidence.TLogProof, true},
}

func (p *proven) evidence() (attestation.Evidence, error) {
	var salts *verify.Salts
	if secrets := p.leaf.Secrets; secrets != nil {
		var err error
		if salts, err = attestation.SaltsOf(secrets[:attestation.SecretSize], secrets[attestation.SecretSize:]); err != nil {
			return attestation.Evidence{}, err
		}
	}
	return attestation.Evidence{
		Origin:     p.leaf.Origin,
		Key:        p.key,
		Leaf:       p.leaf.Leaf,
		LeafHash:   p.leaf.LeafHash,
		Salts:      salts,
		Proof:      verify.InclusionProof{LeafIndex: uint64(p.leaf.LeafIndex), TreeSize: uint64(p.head.TreeSize), Hashes: p.path},
		Head:       p.head.signed(),
		Checkpoint: p.head.Checkpoint,
		History:    p.history,
	}, nil
}

// prove finds an attempt's leaf, the head to prove it against and the path between them. The error is notSealedError for an
// attempt that is recorded but under no published head; whether it has an index by then is nobody's business.
func (s *Server) prove(ctx context.Context, attempt string, treeSize *int64) (*proven, error) {
	attemptID, err := parseProven(attempt)
	if err != nil {
		return nil, err
	}
	if treeSize != nil && *treeSize < 1 {
		return nil, invalidParameter("tree_size", "must be at least 1")
	}
	var p *proven
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		place, err := q.PlaceOfAttempt(ctx, attemptID.UUID)
		if errors.Is(err, pgx.ErrNoRows) {
			return attemptID.waiting(ctx, q)
		}
		if err != nil {
			return err
		}
		leaf := attemptLeaf{PlaceOfAttemptRow: place}
		if leaf.LeafAtRow, err = q.LeafAt(ctx, leaf.LogID, leaf.LeafIndex); err != nil {
			return fmt.Errorf("read leaf: %w", err)
		}
		p = &proven{leaf: leaf}
		if p.head, err = headFor(ctx, q, attemptID, leaf, treeSize); err != nil {
			return err
		}
		if p.key, err = q.LogKey(ctx, leaf.LogID, p.head.KeyID); err != nil {
			return fmt.Errorf("read the head's key: %w", err)
		}
		tiles := s.tiles.reader(tx, leaf.LogID)
		p.path, err = attestation.ProveInclusion(ctx, tiles, uint64(leaf.LeafIndex), uint64(p.head.TreeSize))
		if err != nil {
			return err
		}
		p.history, err = keyHistory(ctx, tx, tiles, leaf.LogID, uint64(p.head.TreeSize))
		return err
	})
	return p, err
}

// untilSealed is how long an attempt still has to wait for a head, given for how many seconds it has.
func untilSealed(age float64) time.Duration {
	left := cadence - time.Duration(age*float64(time.Second))
	return max(left, time.Second) // where sealing is late, ask again often
}

func inSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// headFor finds the earliest published head that covers the leaf, or the one of the size that was asked for.
func headFor(ctx context.Context, q *db.Queries, attempt provenID, leaf attemptLeaf, treeSize *int64) (publishedHead, error) {
	first, err := q.FirstSignedHeadAbove(ctx, leaf.LogID, leaf.LeafIndex)
	if errors.Is(err, pgx.ErrNoRows) {
		return publishedHead{}, attempt.waiting(ctx, q)
	}
	if err != nil || treeSize == nil {
		return publishedHead(first), err
	}
	if *treeSize <= leaf.LeafIndex {
		return publishedHead{}, invalidParameter("tree_size", "must be more than %d, the attempt's leaf index", leaf.LeafIndex)
	}
	head, err := q.FirstSignedHeadOfSize(ctx, leaf.LogID, *treeSize)
	if errors.Is(err, pgx.ErrNoRows) {
		return publishedHead{}, noSuchHead()
	}
	return publishedHead(head), err
}

func noSuchHead() error {
	return &problem{kind: kindNotFound, field: "tree_size",
		detail: "tree_size must be the size of a published tree head. Leave it out for the earliest one that covers the attempt."}
}
