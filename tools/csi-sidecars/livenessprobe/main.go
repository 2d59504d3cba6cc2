// Answers GET /healthz with what a CSI driver answers Probe: a stand-in for livenessprobe, which is not to be had as a Go module
// (its versions are 2 and its module path says 1). It takes the arguments that the chart gives; nothing here tests the original itself.
package main

import (
	"context"
	"flag"
	"net/http"
	"os"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/connection"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"k8s.io/klog/v2"
)

var (
	driver   = flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	endpoint = flag.String("http-endpoint", ":9808", "the address to answer on")
	timeout  = flag.Duration("probe-timeout", time.Second, "how long the driver may take")
)

func main() {
	klog.InitFlags(nil)
	flag.Parse()
	// Waits for as long as the driver takes to listen, and goes on when the driver is restarted.
	conn, err := connection.ConnectWithoutMetrics(context.Background(), *driver)
	if err != nil {
		klog.ErrorS(err, "cannot connect to the driver")
		os.Exit(1)
	}
	http.HandleFunc("/healthz", func(response http.ResponseWriter, request *http.Request) {
		ctx, cancel := context.WithTimeout(request.Context(), *timeout)
		defer cancel()
		ready, err := rpc.Probe(ctx, conn)
		switch {
		case err != nil:
			klog.ErrorS(err, "the driver does not answer Probe")
			http.Error(response, err.Error(), http.StatusInternalServerError)
		case !ready:
			http.Error(response, "the driver is not ready", http.StatusInternalServerError)
		default:
			_, _ = response.Write([]byte("ok"))
		}
	})
	klog.ErrorS(http.ListenAndServe(*endpoint, nil), "no longer listening")
	os.Exit(1)
}
