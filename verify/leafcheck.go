package verify

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// maxInteger is the largest integer that every JSON parser holds exactly.
const maxInteger = 1<<53 - 1

var (
	// typeIDSuffix is a UUID in the lowercase Crockford alphabet; the first digit holds only three bits.
	typeIDSuffix = regexp.MustCompile(`^[0-7][0-9a-hjkmnp-tv-z]{25}$`)
	// word is the grammar of kinds, outcomes and error classes: never free text.
	word = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	// hostName is a lowercase DNS name (A-labels) or an IPv4 address.
	hostName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$`)
)

// check wants every member to have its grammar, and the members to agree with each other.
func (l *Leaf) check() error {
	if l.V != 1 {
		return fmt.Errorf("%w: version %d, want 1", ErrLeafFormat, l.V)
	}
	for _, step := range []func() error{l.checkKind, l.checkIDs, l.checkIntegers, l.checkHashes, l.checkTexts, l.checkResponse} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (l *Leaf) checkKind() error {
	switch l.Kind {
	case KindAttempt:
		if l.Outcome != OutcomeDelivered && l.Outcome != OutcomeRetry && l.Outcome != OutcomeFailed {
			return badMember("outcome", l.Outcome)
		}
		return nil
	case KindAccepted:
		if l.Outcome != "" && !word.MatchString(l.Outcome) {
			return badMember("outcome", l.Outcome)
		}
		return nil
	case KindSkipped, KindDead, KindCanceled:
		if !word.MatchString(l.Outcome) {
			return badMember("outcome", l.Outcome)
		}
		return nil
	}
	if !word.MatchString(l.Kind) {
		return badMember("kind", l.Kind)
	}
	return fmt.Errorf("%w: %q", ErrUnknownKind, l.Kind)
}

func (l *Leaf) checkIDs() error {
	accepted := l.Kind == KindAccepted
	for _, m := range []struct {
		name, prefix, value string
		optional            bool
	}{
		{"attempt_id", "da_", l.AttemptID, accepted},
		{"delivery_id", "dlv_", l.DeliveryID, accepted},
		{"destination_id", "dst_", l.DestinationID, accepted},
		{"endpoint_id", "ep_", l.EndpointID, false},
		{"event_id", "evt_", l.EventID, false},
		{"tenant_id", "ten_", l.TenantID, false},
	} {
		suffix, ok := strings.CutPrefix(m.value, m.prefix)
		if (!ok || !typeIDSuffix.MatchString(suffix)) && (!m.optional || m.value != "") {
			return badMember(m.name, m.value)
		}
	}
	return nil
}

func (l *Leaf) checkIntegers() error {
	firstAttempt := int64(0)
	if l.Kind == KindAttempt {
		firstAttempt = 1
	}
	for _, m := range []struct {
		name       string
		value, min int64
	}{
		{"attempt_number", l.AttemptNumber, firstAttempt},
		{"duration_ms", l.DurationMS, 0},
		{"lost_starts", l.LostStarts, 0},
		{"payload_size", l.PayloadSize, 0},
		{"response_size", l.ResponseSize, 0},
		{"response_status", l.ResponseStatus, 0},
		{"seq", l.Seq, 1},
	} {
		if m.value < m.min || m.value > maxInteger {
			return badMember(m.name, strconv.FormatInt(m.value, 10))
		}
	}
	return nil
}

func (l *Leaf) checkHashes() error {
	for _, m := range []struct {
		name, value string
		bytes       int
		optional    bool
	}{
		{"headers_hash", l.HeadersHash, HashSize, true},
		{"nonce", l.Nonce, 16, false},
		{"payload_hash", l.PayloadHash, HashSize, false},
		{"previous_leaf_hash", l.PreviousLeafHash, HashSize, l.Seq == 1},
		{"response_hash", l.ResponseHash, HashSize, l.ResponseStatus == 0},
		{"url_hash", l.URLHash, HashSize, l.Kind != KindAttempt},
	} {
		b, err := decodeHex(m.value)
		if (err != nil || len(b) != m.bytes) && (!m.optional || m.value != "") {
			return badMember(m.name, m.value)
		}
	}
	if l.Seq == 1 && l.PreviousLeafHash != "" {
		return badMember("previous_leaf_hash", l.PreviousLeafHash)
	}
	return nil
}

func (l *Leaf) checkTexts() error {
	if t, err := time.Parse(timeLayout, l.AttemptedAt); err != nil || t.Format(timeLayout) != l.AttemptedAt {
		return badMember("attempted_at", l.AttemptedAt)
	}
	if l.Error != "" && !word.MatchString(l.Error) {
		return badMember("error", l.Error)
	}
	if CheckOrigin(l.Origin) != nil {
		return badMember("origin", l.Origin)
	}
	if !validEndpointURL(l.EndpointURL) && (l.Kind != KindAccepted || l.EndpointURL != "") {
		return badMember("endpoint_url", l.EndpointURL)
	}
	return nil
}

// checkResponse wants a delivery to have been answered with success, and no body without a status line.
func (l *Leaf) checkResponse() error {
	if l.ResponseStatus == 0 && (l.ResponseHash != "" || l.ResponseSize != 0 || l.ResponseTruncated) {
		return fmt.Errorf("%w: a response without a status", ErrLeafFormat)
	}
	if l.ResponseStatus != 0 && (l.ResponseStatus < 100 || l.ResponseStatus > 999) {
		return badMember("response_status", strconv.FormatInt(l.ResponseStatus, 10))
	}
	if l.Kind == KindAttempt && l.Outcome == OutcomeDelivered && l.ResponseStatus/100 != 2 {
		return fmt.Errorf("%w: delivered, yet with status %d", ErrLeafFormat, l.ResponseStatus)
	}
	return nil
}

// validEndpointURL reports whether s is scheme://host[:port][/path] as a leaf has it: nothing that could hold
// credentials or fool a reader about the host.
func validEndpointURL(s string) bool {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !printableASCII(s) || strings.ContainsAny(s, " ?#\\\"<>") {
		return false
	}
	authority, _, _ := strings.Cut(rest, "/")
	host, port := authority, ""
	if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
		host, port = authority[:i], authority[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return false
		}
	}
	defaultPort := map[string]string{"http": "80", "https": "443"}
	return (scheme == "http" || scheme == "https") && port != defaultPort[scheme] && validHost(host)
}

// validHost reports whether host is a lowercase name, an IPv4 address or a bracketed IPv6 address without a zone.
func validHost(host string) bool {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		return closed && err == nil && addr.Is6() && addr.Zone() == "" && strings.ToLower(inner) == inner
	}
	return hostName.MatchString(host)
}

// badMember names the member; its value is quoted and cut short, for it comes from a stranger.
func badMember(name, value string) error {
	if len(value) > 80 {
		value = value[:80] + "…"
	}
	return fmt.Errorf("%w: member %q is %q", ErrLeafFormat, name, value)
}
