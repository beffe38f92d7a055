package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kapsel-io/kapsel/verify"
)

const (
	requestTimeout = 30 * time.Second
	maxHeaderBytes = 64 << 10
	maxProofBytes  = 64 << 10
)

var (
	// ErrURL: the log's URL can't be used.
	ErrURL = errors.New("URL of the log")
	// ErrResponse: the server's answer isn't what was asked for.
	ErrResponse = errors.New("answer of the log")
	// ErrNotFound: the server doesn't have what was asked for.
	ErrNotFound = fmt.Errorf("%w: status 404", ErrResponse)
)

// client reads one log.
type client struct {
	base *url.URL
	http *http.Client
}

// newClient takes the URL under which the log's checkpoint and tiles are, https://host/log/log_….
func newClient(logURL string) (*client, error) {
	u, err := url.Parse(logURL)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: want https://host/log/log_…, without user, query and fragment", ErrURL)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return &client{base: u, http: &http.Client{
		Timeout: requestTimeout,
		// A log has one address. Following it elsewhere would let it point the monitor at hosts inside the monitor's network.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true, // hashes don't shrink, and a small body can't become a large one
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        time.Minute,
		},
	}}, nil
}

// origin is the name that a log at this address has unless somebody says otherwise.
func (c *client) origin() string { return c.base.Host + c.base.Path }

// checkpoint reads the newest checkpoint, unverified.
func (c *client) checkpoint(ctx context.Context) ([]byte, error) {
	return c.get(ctx, c.base.JoinPath("checkpoint"), verify.MaxNoteSize)
}

// hashes returns what verify.CompareHeads takes for sizes m < n, unverified: from tiles, or from the API if the log
// publishes none.
func (c *client) hashes(ctx context.Context, small, large verify.SignedTreeHead) (verify.Hashes, error) {
	if small.TreeSize == 0 {
		return verify.Hashes{}, nil
	}
	t := tiles{client: c, size: large.TreeSize, read: map[string][]byte{}}
	hashes, err := t.hashes(ctx, small.TreeSize)
	if errors.Is(err, ErrNotFound) {
		return c.apiHashes(ctx, small, large)
	}
	return hashes, err
}

// apiHashes asks for the consistency proof. It leaves out the root of a size that is a power of two, so the root that was
// seen stands in for it: if the trees are consistent that shows; if they aren't, the answer proves nothing.
func (c *client) apiHashes(ctx context.Context, small, large verify.SignedTreeHead) (verify.Hashes, error) {
	prefix, logID, ok := strings.Cut(c.base.Path, "/log/")
	if !ok {
		return nil, fmt.Errorf("%w: it serves no tiles, and its path names no log to ask the API for", ErrResponse)
	}
	u := *c.base
	u.Path = prefix + "/api/v1/attestation/consistency-proof"
	u.RawQuery = url.Values{
		"log":      {logID},
		"old_size": {strconv.FormatUint(small.TreeSize, 10)},
		"new_size": {strconv.FormatUint(large.TreeSize, 10)},
	}.Encode()
	b, err := c.get(ctx, &u, maxProofBytes)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Hashes verify.Hashes `json:"consistency_proof"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("%w: consistency proof: %w", ErrResponse, err)
	}
	if small.TreeSize&(small.TreeSize-1) == 0 {
		return append(verify.Hashes{small.RootHash}, answer.Hashes...), nil
	}
	return answer.Hashes, nil
}

// get reads a body of at most limit bytes. It says nothing of what an unexpected answer holds: that is the server's text.
func (c *client) get(ctx context.Context, u *url.URL, limit int64) (body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	req.Header.Set("User-Agent", "kapsel-verify monitor")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrResponse, err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%w for %s", ErrNotFound, u.Path)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%w: status %d for %s", ErrResponse, resp.StatusCode, u.Path)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrResponse, u.Path, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes for %s", ErrResponse, limit, u.Path)
	}
	return body, nil
}
