package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// maxProofs is how many attempts one request may ask for.
const maxProofs = 1000

// GetProofs reads the inclusion proofs of many attempts with a few statements, however many they are: GetProof is the same
// for one. An attempt that isn't there, or is another tenant's, refuses the request, and the problem says which it is.
func (s *Server) GetProofs(ctx context.Context, request openapi.GetProofsRequestObject) (openapi.GetProofsResponseObject, error) {
	attempts, err := parseAttempts(request.Body.AttemptIds)
	if err != nil {
		return nil, err
	}
	if size := request.Body.TreeSize; size != nil && *size < 1 {
		return nil, invalidField("tree_size", "must be at least 1")
	}
	answer := openapi.Proofs{Heads: []openapi.SignedTreeHead{}, Proofs: make([]openapi.ProofOfMany, len(attempts))}
	for i, name := range request.Body.AttemptIds {
		answer.Proofs[i] = openapi.ProofOfMany{AttemptID: name, Status: openapi.ProofOfManyStatusPending}
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		many := &manyProofs{server: s, tx: tx, q: db.New(tx), attempts: attempts, treeSize: request.Body.TreeSize, answer: &answer}
		return many.run(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("prove attempts: %w", err)
	}
	return openapi.GetProofs200JSONResponse(answer), nil
}

// parseAttempts names the first ID that is wrong.
func parseAttempts(names []string) ([]provenID, error) {
	if len(names) < 1 || len(names) > maxProofs {
		return nil, invalidField("attempt_ids", "must be 1 to %d IDs, not %d", maxProofs, len(names))
	}
	attempts := make([]provenID, len(names))
	first := map[provenID]int{}
	for i, name := range names {
		attempt, err := parseProven(name)
		if err != nil {
			return nil, invalidField(fmt.Sprintf("attempt_ids[%d]", i), "must be an ID: da_ (or evt_) and 26 digits and lower-case letters")
		}
		if j, again := first[attempt]; again {
			return nil, invalidField(fmt.Sprintf("attempt_ids[%d]", i), "is the same as attempt_ids[%d]. Name each attempt once", j)
		}
		attempts[i], first[attempt] = attempt, i
	}
	return attempts, nil
}

// manyProofs fills the answer of one request. An attempt is known by its place in the request.
type manyProofs struct {
	server   *Server
	tx       pgx.Tx
	q        *db.Queries
	attempts []provenID
	treeSize *int64
	answer   *openapi.Proofs
	pending  []int // attempts that no published head covers
}

func (m *manyProofs) run(ctx context.Context) error {
	ids := make([]uuid.UUID, len(m.attempts))
	for i, attempt := range m.attempts {
		ids[i] = attempt.UUID
	}
	rows, err := m.q.PlacesOfAttempts(ctx, ids)
	if err != nil {
		return fmt.Errorf("read places: %w", err)
	}
	places := make(map[uuid.UUID]db.PlacesOfAttemptsRow, len(rows))
	for _, row := range rows {
		places[row.AttemptID] = row
	}
	logs := map[uuid.UUID][]int{} // a tenant has one log at a time, and over the years it may have had several
	for i, attempt := range m.attempts {
		if place, sequenced := places[attempt.UUID]; sequenced {
			logs[place.LogID] = append(logs[place.LogID], i)
		} else {
			m.pending = append(m.pending, i)
		}
	}
	for _, which := range slices.SortedFunc(maps.Values(logs), func(a, b []int) int { return cmp.Compare(a[0], b[0]) }) {
		if err := m.proveInLog(ctx, which, places); err != nil {
			return err
		}
	}
	return m.wait(ctx)
}

// proveInLog proves attempts whose leaves are in one log.
func (m *manyProofs) proveInLog(ctx context.Context, which []int, places map[uuid.UUID]db.PlacesOfAttemptsRow) error {
	log := db.PublicLogRow{ID: places[m.attempts[which[0]].UUID].LogID, Origin: places[m.attempts[which[0]].UUID].Origin}
	index := func(i int) int64 { return places[m.attempts[i].UUID].LeafIndex }
	heads, err := m.headsFor(ctx, log, which, index)
	if err != nil {
		return err
	}
	var covered []int
	var indexes []int64
	var wanted []attestation.Place
	for _, i := range which {
		head, ok := heads[i]
		if !ok {
			m.pending = append(m.pending, i)
			continue
		}
		covered, indexes = append(covered, i), append(indexes, index(i))
		wanted = append(wanted, attestation.Place{Index: uint64(index(i)), Size: uint64(m.answer.Heads[head].TreeSize)})
	}
	leaves, err := m.leavesAt(ctx, log.ID, indexes)
	if err != nil {
		return err
	}
	paths, err := attestation.ProveInclusions(ctx, m.server.tiles.reader(m.tx, log.ID), wanted)
	if err != nil {
		return err
	}
	for n, i := range covered {
		leaf, ok := leaves[indexes[n]]
		if !ok {
			return fmt.Errorf("leaf %d of log %s isn't there", indexes[n], log.ID)
		}
		m.proven(i, heads[i], leaf, paths[n])
	}
	return nil
}

// headsFor finds for each attempt the head to prove it against, adds each head to the answer once, and tells which it is.
// Attempts that no published head covers are left out.
func (m *manyProofs) headsFor(ctx context.Context, log db.PublicLogRow, which []int, index func(int) int64) (map[int]int, error) {
	indexes := make([]int64, len(which))
	for n, i := range which {
		indexes[n] = index(i)
	}
	rows, err := m.q.FirstSignedHeadsAbove(ctx, log.ID, indexes)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	first := make(map[int64]publishedHead, len(rows))
	for _, r := range rows {
		first[r.LeafIndex] = publishedHead{r.TreeSize, r.Timestamp, r.RootHash, r.KeyID, r.Signature, r.Checkpoint}
	}
	heads := make(map[int]int, len(which))
	added := map[int64]int{} // by size: of each the earliest head is taken
	for _, i := range which {
		head, ok := first[index(i)]
		if !ok {
			continue
		}
		if m.treeSize != nil {
			if *m.treeSize <= index(i) {
				return nil, invalidField("tree_size", "must be more than %d, the leaf index of attempt_ids[%d]", index(i), i)
			}
			head.TreeSize = *m.treeSize
		}
		at, ok := added[head.TreeSize]
		if !ok {
			if head, err = m.asked(ctx, log.ID, head); err != nil {
				return nil, err
			}
			at = len(m.answer.Heads)
			added[head.TreeSize] = at
			m.answer.Heads = append(m.answer.Heads, head.answer(log))
		}
		heads[i] = at
	}
	return heads, nil
}

// asked reads the head of the size that was asked for, if one was.
func (m *manyProofs) asked(ctx context.Context, log uuid.UUID, head publishedHead) (publishedHead, error) {
	if m.treeSize == nil {
		return head, nil
	}
	row, err := m.q.FirstSignedHeadOfSize(ctx, log, *m.treeSize)
	if errors.Is(err, pgx.ErrNoRows) {
		return publishedHead{}, noSuchHead()
	}
	return publishedHead(row), err
}

func (m *manyProofs) leavesAt(ctx context.Context, log uuid.UUID, indexes []int64) (map[int64]db.LeavesAtRow, error) {
	rows, err := m.q.LeavesAt(ctx, log, indexes)
	if err != nil {
		return nil, fmt.Errorf("read leaves: %w", err)
	}
	leaves := make(map[int64]db.LeavesAtRow, len(rows))
	for _, row := range rows {
		leaves[row.LeafIndex] = row
	}
	return leaves, nil
}

func (m *manyProofs) proven(i, head int, leaf db.LeavesAtRow, path [][]byte) {
	hash, hashes := hex.EncodeToString(leaf.LeafHash), hexAll(path)
	p := &m.answer.Proofs[i]
	p.Status, p.Head, p.LeafIndex, p.LeafHash, p.InclusionProof = openapi.ProofOfManyStatusProven, &head, &leaf.LeafIndex, &hash, &hashes
	if leaf.Leaf != nil {
		text := base64.StdEncoding.EncodeToString(leaf.Leaf)
		p.Leaf = &text
	}
}

// wait says of what is pending when to come back, or that there is no such attempt.
func (m *manyProofs) wait(ctx context.Context) error {
	if len(m.pending) == 0 {
		return nil
	}
	slices.Sort(m.pending)
	pending := make([]provenID, len(m.pending))
	for n, i := range m.pending {
		pending[n] = m.attempts[i]
	}
	ages, err := agesOf(ctx, m.q, pending)
	if err != nil {
		return err
	}
	for _, i := range m.pending {
		age, ok := ages[m.attempts[i].UUID]
		if !ok {
			p := notFound("attempt")
			p.field = fmt.Sprintf("attempt_ids[%d]", i)
			return p
		}
		seconds := inSeconds(untilSealed(age))
		m.answer.Proofs[i].RetryAfterSeconds = &seconds
	}
	return nil
}
