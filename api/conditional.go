package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// conditional is an answer with an ETag, made of its bytes: who has them already gets 304 and no body. It answers every
// route that has such answers.
type conditional struct {
	body         []byte
	mediaType    string
	cacheControl string
	filename     string // of a download; else empty
	etag         string
	unchanged    bool
}

// newConditional compares body with the ETags of an If-None-Match header, if there is one.
func newConditional(body []byte, mediaType, cacheControl string, ifNoneMatch *string) *conditional {
	sum := sha256.Sum256(body)
	answer := &conditional{body: body, mediaType: mediaType, cacheControl: cacheControl, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
	for tag := range strings.SplitSeq(value(ifNoneMatch), ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/") // RFC 9110, section 13.1.2: the comparison is weak
		answer.unchanged = answer.unchanged || tag == answer.etag || tag == "*"
	}
	return answer
}

func conditionalJSON(v any, cacheControl string, ifNoneMatch *string) (*conditional, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return newConditional(append(body, '\n'), "application/json", cacheControl, ifNoneMatch), nil
}

func (c *conditional) write(w http.ResponseWriter) error {
	w.Header().Set("Cache-Control", c.cacheControl)
	w.Header().Set("ETag", c.etag)
	if c.unchanged {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Type", c.mediaType)
	if c.filename != "" {
		w.Header().Set("Content-Disposition", `attachment; filename="`+c.filename+`"`)
	}
	_, err := w.Write(c.body)
	return err
}

func (c *conditional) VisitGetTreeHeadResponse(w http.ResponseWriter) error     { return c.write(w) }
func (c *conditional) VisitGetProofResponse(w http.ResponseWriter) error        { return c.write(w) }
func (c *conditional) VisitDownloadProofResponse(w http.ResponseWriter) error   { return c.write(w) }
func (c *conditional) VisitDownloadReceiptResponse(w http.ResponseWriter) error { return c.write(w) }
func (c *conditional) VisitGetConsistencyProofResponse(w http.ResponseWriter) error {
	return c.write(w)
}
