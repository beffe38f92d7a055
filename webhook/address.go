package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"code.dny.dev/ssrf"
	"golang.org/x/net/idna"
)

// MaxURL is the length of the longest URL that can be delivered to, in bytes.
const MaxURL = 2048

// azureMetadata is Azure's metadata and DNS address. It lies in public space, so the registries of special addresses
// don't know it. (Those of the other clouds are link-local, shared or unique-local, which are refused anyway.)
var azureMetadata = netip.MustParsePrefix("168.63.129.16/32")

// newGuardian refuses every address that isn't on the public internet, unless it lies in one of the prefixes of allow.
func newGuardian(allow []netip.Prefix) *ssrf.Guardian {
	var v4, v6 []netip.Prefix
	for _, p := range allow {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(v4...), ssrf.WithAllowedV6Prefixes(v6...),
		ssrf.WithDeniedV4Prefixes(azureMetadata))
}

// ValidateURL says whether a destination can have this URL, and if not, why; never with any part of the URL, which may
// hold a secret. It must be http or https, with a host, without user information and fragment. An IP address in it must
// be public or in one of the prefixes of allow. A host name isn't resolved: what counts is the address that it has when
// it is dialed, which Client checks. Names that can never have an allowed one, and numbers that only look like an address,
// are refused.
func ValidateURL(raw string, allow ...netip.Prefix) error {
	u, err := parseURL(raw)
	if err != nil {
		return err
	}
	return validHost(u.Hostname(), allow)
}

// validHost checks a name or address; its errors begin with "url".
func validHost(host string, allow []netip.Prefix) error {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return validName(host, allow)
	}
	if newGuardian(allow).SafeAddr(addr.Unmap()) != nil { // the mapped form reaches the IPv4 address
		return errors.New("url must not point to a private, local or reserved address")
	}
	return nil
}

// loopback is what localhost and all names below it stand for (RFC 6761, section 6.3).
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// number is the last part of what inet_aton, and the WHATWG's URLs, take for an IPv4 address: 127.1, 2130706433, 0x7f.1.
var number = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)

func validName(host string, allow []netip.Prefix) error {
	// The form in which names are looked up has other digits and dots written as those of ASCII.
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "localhost" && !slices.ContainsFunc(loopback, func(a netip.Addr) bool { return newGuardian(allow).SafeAddr(a) == nil }) {
		return errors.New("url must not point to a private, local or reserved address")
	}
	if number.MatchString(last) {
		return errors.New("url must have a host name, or an IPv4 address of four decimal numbers")
	}
	return nil
}

func parseURL(raw string) (*url.URL, error) {
	if len(raw) > MaxURL {
		return nil, fmt.Errorf("url must have at most %d bytes, not %d", MaxURL, len(raw))
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("url is malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("url must start with http:// or https://")
	case u.User != nil:
		return nil, errors.New("url must not hold a user name or password; configure a header instead")
	case strings.Contains(raw, "#"):
		return nil, errors.New("url must not have a fragment")
	case u.Hostname() == "":
		return nil, errors.New("url must have a host")
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()):
		return nil, errors.New("url must have a port of 1 to 65535, or none")
	}
	return u, nil
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// blocked reports whether a dial failed because the guardian refused the address.
func blocked(err error) bool {
	return errors.Is(err, ssrf.ErrProhibitedIP) || errors.Is(err, ssrf.ErrProhibitedNetwork) || errors.Is(err, ssrf.ErrInvalidHostPort)
}

// isDNS reports whether err is of the resolver.
func isDNS(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e)
}
