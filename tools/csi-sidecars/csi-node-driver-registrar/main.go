// Tells kubelet of a CSI driver: a stand-in for csi-node-driver-registrar, which is not to be had as a Go module (its versions are
// 2 and its module path says 1). It takes the arguments that the chart gives and does what kubelet sees of the original; nothing here
// tests the original itself.
package main

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/connection"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// kubelet looks for sockets in this folder of the container, where the chart mounts its own.
const folder = "/registration"

var (
	driver   = flag.String("csi-address", "/run/csi/socket", "the driver's socket, as this process sees it")
	endpoint = flag.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it")
)

type server struct {
	registration.UnimplementedRegistrationServer
	name string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: s.name, Endpoint: *endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// A driver that kubelet does not take is tried again from the start, by the container's restart.
func (s *server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		klog.ErrorS(nil, "kubelet did not register the driver", "driver", s.name, "reason", status.Error)
		os.Exit(1)
	}
	klog.InfoS("kubelet registered the driver", "driver", s.name)
	return &registration.RegistrationStatusResponse{}, nil
}

func fatal(err error, what string) {
	klog.ErrorS(err, what)
	os.Exit(1)
}

func main() {
	klog.InitFlags(nil)
	flag.Parse()
	ctx := context.Background()
	conn, err := connection.ConnectWithoutMetrics(ctx, *driver)
	if err != nil {
		fatal(err, "cannot connect to the driver")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	name, err := rpc.GetDriverName(ctx, conn)
	if err != nil {
		fatal(err, "the driver does not tell its name")
	}
	socket := filepath.Join(folder, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		fatal(err, "cannot remove the socket of an earlier registrar")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		fatal(err, "cannot listen for kubelet")
	}
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, &server{name: name})
	fatal(registrar.Serve(listener), "no longer listening for kubelet")
}
