package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/verify"
)

// openDir is a directory that Postgres's user can pass through, unlike t.TempDir for root.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kapsel-local-*") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

// startTestStack runs a whole stack in this process until the test ends.
func startTestStack(t *testing.T) *testStack {
	t.Helper()
	return startStackWith(t, stackConfig{})
}

// startStackWith runs one by config, in a directory of its own.
func startStackWith(t *testing.T, config stackConfig) *testStack {
	t.Helper()
	config.Dir, config.LogLevel = openDir(t), "info"
	s, err := startStack(t.Context(), config, io.Discard)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.stop(nil)) })
	return &testStack{stack: s, site: newSite(t, s.apiURL, s.dbURL, s.state)}
}

type testStack struct {
	*stack
	*site
}

// site is a running Kapsel, in this process or another, seen from outside.
type site struct {
	base string
	made state
	api  *client.ClientWithResponses
	db   *pgxpool.Pool
}

func newSite(t *testing.T, apiURL, dbURL string, s state) *site {
	t.Helper()
	api, err := client.NewClientWithResponses(apiURL, client.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+s.APIKey)
		return nil
	}))
	require.NoError(t, err)
	db, err := pgxpool.New(context.Background(), dbURL)
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return &site{base: apiURL, made: s, api: api, db: db}
}

// schedule is a list of waits in milliseconds.
func schedule(delaysMS ...int64) *client.Schedule {
	list := client.ScheduleTypeList
	return &client.Schedule{Type: &list, DelaysMs: &delaysMS}
}

// withoutCircuits are destinations whose circuits never open, unless they say how they do: a receiver that fails on purpose
// would be left alone for 30 s.
func withoutCircuits(destinations []client.NewDestination) []client.NewDestination {
	off := true
	destinations = slices.Clone(destinations)
	for i := range destinations {
		if destinations[i].Circuit == nil {
			destinations[i].Circuit = &client.CircuitSettings{Off: &off}
		}
	}
	return destinations
}

func (s *site) createEndpoint(t *testing.T, destinations ...client.NewDestination) client.Endpoint {
	t.Helper()
	answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
		Name: "test", Verification: client.Verification{Scheme: client.VerificationSchemeNone}, Destinations: withoutCircuits(destinations),
	})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON201, string(answer.Body))
	return *answer.JSON201
}

// ingest sends one webhook and returns its event's ID, or "" if it wasn't accepted.
func (s *site) ingest(ctx context.Context, endpoint client.Endpoint, body string) (string, int) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/ingest/"+endpoint.ID, strings.NewReader(body))
	if err != nil {
		return "", 0
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", 0
	}
	defer func() { _ = res.Body.Close() }()
	var accepted struct {
		EventID string `json:"event_id"`
	}
	if err := json.NewDecoder(res.Body).Decode(&accepted); err != nil || res.StatusCode != http.StatusOK {
		return "", res.StatusCode
	}
	return accepted.EventID, res.StatusCode
}

func (s *site) mustIngest(t *testing.T, endpoint client.Endpoint, body string) string {
	t.Helper()
	event, status := s.ingest(t.Context(), endpoint, body)
	require.Equal(t, http.StatusOK, status)
	return event
}

func (s *site) count(t *testing.T, sql string, args ...any) int {
	t.Helper()
	var n int
	require.NoError(t, s.db.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// awaitZero waits until a count is zero.
func (s *site) awaitZero(t *testing.T, patience time.Duration, sql string, args ...any) {
	t.Helper()
	require.Eventually(t, func() bool {
		var n int
		err := s.db.QueryRow(context.Background(), sql, args...).Scan(&n)
		return err == nil && n == 0
	}, patience, 100*time.Millisecond, sql)
}

// awaitSealed waits until every delivery is over, every leaf is sequenced and a signed head covers them.
func (s *site) awaitSealed(t *testing.T, patience time.Duration) {
	t.Helper()
	s.awaitZero(t, patience, "select count(*) from deliveries where state = 'pending'")
	s.awaitZero(t, patience, "select count(*) from leaf_queue")
	s.awaitZero(t, patience, `select count(*) from log_heads h
		where h.tree_size > (select coalesce(max(s.tree_size), 0) from signed_tree_heads s where s.log_id = h.log_id and s.signature is not null)`)
}

// checkRecord reads everything back and checks what must hold of any history: each delivery ends with one terminal
// leaf, every attempt is in the log once, and the tree that the leaves make has the roots that were signed.
func (s *site) checkRecord(t *testing.T) {
	t.Helper()
	require.Zero(t, s.count(t, "select count(*) from attempts a where not exists (select from leaf_of_attempt l where l.attempt_id = a.id)"))
	require.Equal(t, s.count(t, "select count(*) from attempts"), s.count(t, "select count(*) from merkle_leaves"))
	require.Zero(t, s.count(t, "select count(*) from attestation_dead_letters"))
	require.Zero(t, s.count(t, `select count(*) from deliveries d where state <> 'pending' and 1 <> (
		select count(*) from attempts a where a.delivery_id = d.id
		and (a.kind = 'attempt' and a.outcome = 'delivered' or a.kind in ('dead', 'canceled', 'skipped')))`))
	require.Zero(t, s.count(t, "select count(*) from delivery_queue q join deliveries d on d.id = q.delivery_id where d.state <> 'pending'"))
	s.checkRoots(t)
}

func (s *site) checkRoots(t *testing.T) {
	t.Helper()
	rows, err := s.db.Query(context.Background(), "select leaf_index, leaf, leaf_hash from merkle_leaves order by leaf_index")
	require.NoError(t, err)
	defer rows.Close()
	var hashes [][]byte
	for rows.Next() {
		var index int
		var leaf, hash []byte
		require.NoError(t, rows.Scan(&index, &leaf, &hash))
		require.Equal(t, len(hashes), index)
		require.Equal(t, verify.LeafHash(leaf), hash)
		hashes = append(hashes, hash)
	}
	require.NoError(t, rows.Err())
	heads, err := s.db.Query(context.Background(), `select tree_size, "timestamp", root_hash, signature from signed_tree_heads where signature is not null`)
	require.NoError(t, err)
	defer heads.Close()
	for heads.Next() {
		var head verify.SignedTreeHead
		require.NoError(t, heads.Scan(&head.TreeSize, &head.Timestamp, &head.RootHash, &head.Signature))
		require.Equal(t, naiveRoot(hashes[:head.TreeSize]), head.RootHash, "size %d", head.TreeSize)
		require.NoError(t, verify.TreeHead(head, decodeKey(t, s.made.PublicKey)))
	}
	require.NoError(t, heads.Err())
}

// naiveRoot is MTH of RFC 6962, section 2.1, as it is written there.
func naiveRoot(hashes [][]byte) []byte {
	switch len(hashes) {
	case 0:
		root := sha256.Sum256(nil)
		return root[:]
	case 1:
		return hashes[0]
	}
	k := 1
	for 2*k < len(hashes) {
		k *= 2
	}
	root := sha256.Sum256(bytes.Join([][]byte{{1}, naiveRoot(hashes[:k]), naiveRoot(hashes[k:])}, nil))
	return root[:]
}

// receiver counts requests by webhook-id and answers as it is told.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	requests map[string]int
}

func startReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	r := &receiver{requests: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		r.mu.Lock()
		r.requests[req.Header.Get("webhook-id")]++
		n := r.requests[req.Header.Get("webhook-id")]
		r.mu.Unlock()
		answer(n, w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func ok(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

// failing answers 503 to the first n requests of each delivery.
func failing(n int) func(int, http.ResponseWriter, *http.Request) {
	return func(i int, w http.ResponseWriter, _ *http.Request) {
		if i <= n {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

func (r *receiver) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := make(map[string]int, len(r.requests))
	for k, v := range r.requests {
		counts[k] = v
	}
	return counts
}

// temporalClient connects to the stack's Temporal.
func (s *testStack) temporalClient(t *testing.T) sdk.Client {
	t.Helper()
	c, err := sdk.Dial(sdk.Options{HostPort: s.temporal, Namespace: temporal.Namespace})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}
