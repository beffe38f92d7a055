package api

import (
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// queries are the types of the query parameters that routes take. A route that isn't named here takes none.
var queries = map[string]reflect.Type{
	"/api/v1/endpoints":                              reflect.TypeFor[openapi.ListEndpointsParams](),
	"/api/v1/deliveries":                             reflect.TypeFor[openapi.ListDeliveriesParams](),
	"/api/v1/events":                                 reflect.TypeFor[openapi.ListEventsParams](),
	"/api/v1/redeliveries":                           reflect.TypeFor[openapi.ListRedeliveryJobsParams](),
	"/api/v1/attestation/sth":                        reflect.TypeFor[openapi.GetTreeHeadParams](),
	"/api/v1/attestation/proof/:attempt_id":          reflect.TypeFor[openapi.GetProofParams](),
	"/api/v1/attestation/download-proof/:attempt_id": reflect.TypeFor[openapi.DownloadProofParams](),
	routeReceipt:                                     reflect.TypeFor[openapi.DownloadReceiptParams](),
	"/api/v1/attestation/consistency-proof":          reflect.TypeFor[openapi.GetConsistencyProofParams](),
	"/api/v1/attestation/keys":                       reflect.TypeFor[openapi.ListKeysParams](),
}

// checkQuery refuses what net/url would silently leave out, and what the route doesn't know: a filter that isn't read
// would answer with more than was asked for.
func (s *Server) checkQuery(c *gin.Context) {
	known := map[string]bool{}
	if t := queries[c.FullPath()]; t != nil && c.Request.Method == http.MethodGet {
		for f := range t.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("form"), ","); name != "" {
				known[name] = true
			}
		}
	}
	for pair := range strings.SplitSeq(c.Request.URL.RawQuery, "&") {
		if err := checkPair(pair, known); err != nil {
			s.fail(c, err)
			return
		}
	}
}

func checkPair(pair string, known map[string]bool) error {
	if pair == "" {
		return nil
	}
	raw, value, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(raw)
	if err != nil {
		name = raw
	}
	if _, valueErr := url.QueryUnescape(value); err != nil || valueErr != nil || strings.Contains(pair, ";") {
		return invalidParameter(name, "is malformed. Write %%3B for a semicolon, and two hexadecimal digits after each %%")
	}
	if !known[name] {
		if len(known) == 0 {
			return invalidParameter(name, "is unknown. There are no parameters here")
		}
		return invalidParameter(name, "is unknown. Known are %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	return nil
}
