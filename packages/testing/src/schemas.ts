// The only place that knows the fields of the objects that the cluster keeps, and what each may hold: k8s.io/api of Kubernetes 1.36.
import type { Shape, Struct } from './decoding.ts';

// A type to a line, its fields grouped by what they hold; `[…]` is a list of it, `{…}` a map to it.
const table = `
AWSElasticBlockStoreVolumeSource fsType,volumeID:string partition:int32 readOnly:bool
Affinity nodeAffinity:NodeAffinity podAffinity:PodAffinity podAntiAffinity:PodAntiAffinity
AggregationRule clusterRoleSelectors:[LabelSelector]
AppArmorProfile localhostProfile,type:string
AttachedVolume devicePath,name:string
AzureDiskVolumeSource cachingMode,diskName,diskURI,fsType,kind:string readOnly:bool
AzureFileVolumeSource readOnly:bool secretName,shareName:string
CSIVolumeSource driver,fsType:string nodePublishSecretRef:LocalObjectReference readOnly:bool volumeAttributes:{string}
Capabilities add,drop:[string]
CephFSVolumeSource monitors:[string] path,secretFile,user:string readOnly:bool secretRef:LocalObjectReference
CinderVolumeSource fsType,volumeID:string readOnly:bool secretRef:LocalObjectReference
ClientIPConfig timeoutSeconds:int32
ClusterRole aggregationRule:AggregationRule apiVersion,kind:string metadata:ObjectMeta rules:[PolicyRule]
ClusterRoleBinding apiVersion,kind:string metadata:ObjectMeta roleRef:RoleRef subjects:[Subject]
ClusterTrustBundleProjection labelSelector:LabelSelector name,path,signerName:string optional:bool
Condition lastTransitionTime:time message,reason,status,type:string observedGeneration:int64
ConfigMap apiVersion,kind:string binaryData:{bytes} data:{string} immutable:bool metadata:ObjectMeta
ConfigMapEnvSource name:string optional:bool
ConfigMapKeySelector key,name:string optional:bool
ConfigMapNodeConfigSource kubeletConfigKey,name,namespace,resourceVersion,uid:string
ConfigMapProjection items:[KeyToPath] name:string optional:bool
ConfigMapVolumeSource defaultMode:int32 items:[KeyToPath] name:string optional:bool
Container args,command:[string] env:[EnvVar] envFrom:[EnvFromSource] image,imagePullPolicy,name,restartPolicy,terminationMessagePath,terminationMessagePolicy,workingDir:string lifecycle:Lifecycle livenessProbe,readinessProbe,startupProbe:Probe ports:[ContainerPort] resizePolicy:[ContainerResizePolicy] resources:ResourceRequirements restartPolicyRules:[ContainerRestartRule] securityContext:SecurityContext stdin,stdinOnce,tty:bool volumeDevices:[VolumeDevice] volumeMounts:[VolumeMount]
ContainerExtendedResourceRequest containerName,requestName,resourceName:string
ContainerImage names:[string] sizeBytes:int64
ContainerPort containerPort,hostPort:int32 hostIP,name,protocol:string
ContainerResizePolicy resourceName,restartPolicy:string
ContainerRestartRule action:string exitCodes:ContainerRestartRuleOnExitCodes
ContainerRestartRuleOnExitCodes operator:string values:[int32]
ContainerState running:ContainerStateRunning terminated:ContainerStateTerminated waiting:ContainerStateWaiting
ContainerStateRunning startedAt:time
ContainerStateTerminated containerID,message,reason:string exitCode,signal:int32 finishedAt,startedAt:time
ContainerStateWaiting message,reason:string
ContainerStatus allocatedResources:any allocatedResourcesStatus:[ResourceStatus] containerID,image,imageID,name,stopSignal:string lastState,state:ContainerState ready,started:bool resources:ResourceRequirements restartCount:int32 user:ContainerUser volumeMounts:[VolumeMountStatus]
ContainerUser linux:LinuxContainerUser
DaemonEndpoint Port:int32
Deployment apiVersion,kind:string metadata:ObjectMeta spec:DeploymentSpec status:DeploymentStatus
DeploymentCondition lastTransitionTime,lastUpdateTime:time message,reason,status,type:string
DeploymentSpec minReadySeconds,progressDeadlineSeconds,replicas,revisionHistoryLimit:int32 paused:bool selector:LabelSelector strategy:DeploymentStrategy template:PodTemplateSpec
DeploymentStatus availableReplicas,collisionCount,readyReplicas,replicas,terminatingReplicas,unavailableReplicas,updatedReplicas:int32 conditions:[DeploymentCondition] observedGeneration:int64
DeploymentStrategy rollingUpdate:RollingUpdateDeployment type:string
DownwardAPIProjection items:[DownwardAPIVolumeFile]
DownwardAPIVolumeFile fieldRef:ObjectFieldSelector mode:int32 path:string resourceFieldRef:ResourceFieldSelector
DownwardAPIVolumeSource defaultMode:int32 items:[DownwardAPIVolumeFile]
EmptyDirVolumeSource medium:string sizeLimit:any
EnvFromSource configMapRef:ConfigMapEnvSource prefix:string secretRef:SecretEnvSource
EnvVar name,value:string valueFrom:EnvVarSource
EnvVarSource configMapKeyRef:ConfigMapKeySelector fieldRef:ObjectFieldSelector fileKeyRef:FileKeySelector resourceFieldRef:ResourceFieldSelector secretKeyRef:SecretKeySelector
EphemeralContainer args,command:[string] env:[EnvVar] envFrom:[EnvFromSource] image,imagePullPolicy,name,restartPolicy,targetContainerName,terminationMessagePath,terminationMessagePolicy,workingDir:string lifecycle:Lifecycle livenessProbe,readinessProbe,startupProbe:Probe ports:[ContainerPort] resizePolicy:[ContainerResizePolicy] resources:ResourceRequirements restartPolicyRules:[ContainerRestartRule] securityContext:SecurityContext stdin,stdinOnce,tty:bool volumeDevices:[VolumeDevice] volumeMounts:[VolumeMount]
EphemeralVolumeSource volumeClaimTemplate:PersistentVolumeClaimTemplate
Event action,apiVersion,kind,message,reason,reportingComponent,reportingInstance,type:string count:int32 eventTime,firstTimestamp,lastTimestamp:time involvedObject,related:ObjectReference metadata:ObjectMeta series:EventSeries source:EventSource
EventSeries count:int32 lastObservedTime:time
EventSource component,host:string
ExecAction command:[string]
ExemptPriorityLevelConfiguration lendablePercent,nominalConcurrencyShares:int32
FCVolumeSource fsType:string lun:int32 readOnly:bool targetWWNs,wwids:[string]
FileKeySelector key,path,volumeName:string optional:bool
FlexVolumeSource driver,fsType:string options:{string} readOnly:bool secretRef:LocalObjectReference
FlockerVolumeSource datasetName,datasetUUID:string
FlowDistinguisherMethod type:string
FlowSchema apiVersion,kind:string metadata:ObjectMeta spec:FlowSchemaSpec status:FlowSchemaStatus
FlowSchemaCondition lastTransitionTime:time message,reason,status,type:string
FlowSchemaSpec distinguisherMethod:FlowDistinguisherMethod matchingPrecedence:int32 priorityLevelConfiguration:PriorityLevelConfigurationReference rules:[PolicyRulesWithSubjects]
FlowSchemaStatus conditions:[FlowSchemaCondition]
GCEPersistentDiskVolumeSource fsType,pdName:string partition:int32 readOnly:bool
GRPCAction port:int32 service:string
GitRepoVolumeSource directory,repository,revision:string
GlusterfsVolumeSource endpoints,path:string readOnly:bool
GroupSubject name:string
HTTPGetAction host,path,scheme:string httpHeaders:[HTTPHeader] port:any
HTTPHeader name,value:string
HostAlias hostnames:[string] ip:string
HostIP ip:string
HostPathVolumeSource path,type:string
ISCSIVolumeSource chapAuthDiscovery,chapAuthSession,readOnly:bool fsType,initiatorName,iqn,iscsiInterface,targetPortal:string lun:int32 portals:[string] secretRef:LocalObjectReference
ImageVolumeSource pullPolicy,reference:string
ImageVolumeStatus imageRef:string
KeyToPath key,path:string mode:int32
LabelSelector matchExpressions:[LabelSelectorRequirement] matchLabels:{string}
LabelSelectorRequirement key,operator:string values:[string]
Lifecycle postStart,preStop:LifecycleHandler stopSignal:string
LifecycleHandler exec:ExecAction httpGet:HTTPGetAction sleep:SleepAction tcpSocket:TCPSocketAction
LimitResponse queuing:QueuingConfiguration type:string
LimitedPriorityLevelConfiguration borrowingLimitPercent,lendablePercent,nominalConcurrencyShares:int32 limitResponse:LimitResponse
LinuxContainerUser gid,uid:int64 supplementalGroups:[int64]
LoadBalancerIngress hostname,ip,ipMode:string ports:[PortStatus]
LoadBalancerStatus ingress:[LoadBalancerIngress]
LocalObjectReference name:string
ManagedFieldsEntry apiVersion,fieldsType,manager,operation,subresource:string fieldsV1:any time:time
NFSVolumeSource path,server:string readOnly:bool
Namespace apiVersion,kind:string metadata:ObjectMeta spec:NamespaceSpec status:NamespaceStatus
NamespaceCondition lastTransitionTime:time message,reason,status,type:string
NamespaceSpec finalizers:[string]
NamespaceStatus conditions:[NamespaceCondition] phase:string
Node apiVersion,kind:string metadata:ObjectMeta spec:NodeSpec status:NodeStatus
NodeAddress address,type:string
NodeAffinity preferredDuringSchedulingIgnoredDuringExecution:[PreferredSchedulingTerm] requiredDuringSchedulingIgnoredDuringExecution:NodeSelector
NodeAllocatableResourceClaimStatus containers:[string] resourceClaimName:string resources:{string}
NodeCondition lastHeartbeatTime,lastTransitionTime:time message,reason,status,type:string
NodeConfigSource configMap:ConfigMapNodeConfigSource
NodeConfigStatus active,assigned,lastKnownGood:NodeConfigSource error:string
NodeDaemonEndpoints kubeletEndpoint:DaemonEndpoint
NodeFeatures supplementalGroupsPolicy:bool
NodeRuntimeHandler features:NodeRuntimeHandlerFeatures name:string
NodeRuntimeHandlerFeatures recursiveReadOnlyMounts,userNamespaces:bool
NodeSelector nodeSelectorTerms:[NodeSelectorTerm]
NodeSelectorRequirement key,operator:string values:[string]
NodeSelectorTerm matchExpressions,matchFields:[NodeSelectorRequirement]
NodeSpec configSource:NodeConfigSource externalID,podCIDR,providerID:string podCIDRs:[string] taints:[Taint] unschedulable:bool
NodeStatus addresses:[NodeAddress] allocatable,capacity:any conditions:[NodeCondition] config:NodeConfigStatus daemonEndpoints:NodeDaemonEndpoints declaredFeatures,volumesInUse:[string] features:NodeFeatures images:[ContainerImage] nodeInfo:NodeSystemInfo phase:string runtimeHandlers:[NodeRuntimeHandler] volumesAttached:[AttachedVolume]
NodeSwapStatus capacity:int64
NodeSystemInfo architecture,bootID,containerRuntimeVersion,kernelVersion,kubeProxyVersion,kubeletVersion,machineID,operatingSystem,osImage,systemUUID:string swap:NodeSwapStatus
NonResourcePolicyRule nonResourceURLs,verbs:[string]
ObjectFieldSelector apiVersion,fieldPath:string
ObjectMeta annotations,labels:{string} creationTimestamp,deletionTimestamp:time deletionGracePeriodSeconds,generation:int64 finalizers:[string] generateName,name,namespace,resourceVersion,selfLink,uid:string managedFields:[ManagedFieldsEntry] ownerReferences:[OwnerReference]
ObjectReference apiVersion,fieldPath,kind,name,namespace,resourceVersion,uid:string
OwnerReference apiVersion,kind,name,uid:string blockOwnerDeletion,controller:bool
PersistentVolumeClaimSpec accessModes:[string] dataSource:TypedLocalObjectReference dataSourceRef:TypedObjectReference resources:VolumeResourceRequirements selector:LabelSelector storageClassName,volumeAttributesClassName,volumeMode,volumeName:string
PersistentVolumeClaimTemplate metadata:ObjectMeta spec:PersistentVolumeClaimSpec
PersistentVolumeClaimVolumeSource claimName:string readOnly:bool
PhotonPersistentDiskVolumeSource fsType,pdID:string
Pod apiVersion,kind:string metadata:ObjectMeta spec:PodSpec status:PodStatus
PodAffinity preferredDuringSchedulingIgnoredDuringExecution:[WeightedPodAffinityTerm] requiredDuringSchedulingIgnoredDuringExecution:[PodAffinityTerm]
PodAffinityTerm labelSelector,namespaceSelector:LabelSelector matchLabelKeys,mismatchLabelKeys,namespaces:[string] topologyKey:string
PodAntiAffinity preferredDuringSchedulingIgnoredDuringExecution:[WeightedPodAffinityTerm] requiredDuringSchedulingIgnoredDuringExecution:[PodAffinityTerm]
PodCertificateProjection certificateChainPath,credentialBundlePath,keyPath,keyType,signerName:string maxExpirationSeconds:int32 userAnnotations:{string}
PodCondition lastProbeTime,lastTransitionTime:time message,reason,status,type:string observedGeneration:int64
PodDNSConfig nameservers,searches:[string] options:[PodDNSConfigOption]
PodDNSConfigOption name,value:string
PodExtendedResourceClaimStatus requestMappings:[ContainerExtendedResourceRequest] resourceClaimName:string
PodIP ip:string
PodOS name:string
PodReadinessGate conditionType:string
PodResourceClaim name,resourceClaimName,resourceClaimTemplateName:string
PodResourceClaimStatus name,resourceClaimName:string
PodSchedulingGate name:string
PodSchedulingGroup podGroupName:string
PodSecurityContext appArmorProfile:AppArmorProfile fsGroup,runAsGroup,runAsUser:int64 fsGroupChangePolicy,seLinuxChangePolicy,supplementalGroupsPolicy:string runAsNonRoot:bool seLinuxOptions:SELinuxOptions seccompProfile:SeccompProfile supplementalGroups:[int64] sysctls:[Sysctl] windowsOptions:WindowsSecurityContextOptions
PodSpec activeDeadlineSeconds,terminationGracePeriodSeconds:int64 affinity:Affinity automountServiceAccountToken,enableServiceLinks,hostIPC,hostNetwork,hostPID,hostUsers,setHostnameAsFQDN,shareProcessNamespace:bool containers,initContainers:[Container] dnsConfig:PodDNSConfig dnsPolicy,hostname,hostnameOverride,nodeName,preemptionPolicy,priorityClassName,restartPolicy,runtimeClassName,schedulerName,serviceAccount,serviceAccountName,subdomain:string ephemeralContainers:[EphemeralContainer] hostAliases:[HostAlias] imagePullSecrets:[LocalObjectReference] nodeSelector:{string} os:PodOS overhead:any priority:int32 readinessGates:[PodReadinessGate] resourceClaims:[PodResourceClaim] resources:ResourceRequirements schedulingGates:[PodSchedulingGate] schedulingGroup:PodSchedulingGroup securityContext:PodSecurityContext tolerations:[Toleration] topologySpreadConstraints:[TopologySpreadConstraint] volumes:[Volume]
PodStatus allocatedResources:any conditions:[PodCondition] containerStatuses,ephemeralContainerStatuses,initContainerStatuses:[ContainerStatus] extendedResourceClaimStatus:PodExtendedResourceClaimStatus hostIP,message,nominatedNodeName,phase,podIP,qosClass,reason,resize:string hostIPs:[HostIP] nodeAllocatableResourceClaimStatuses:[NodeAllocatableResourceClaimStatus] observedGeneration:int64 podIPs:[PodIP] resourceClaimStatuses:[PodResourceClaimStatus] resources:ResourceRequirements startTime:time
PodTemplateSpec metadata:ObjectMeta spec:PodSpec
PolicyRule apiGroups,nonResourceURLs,resourceNames,resources,verbs:[string]
PolicyRulesWithSubjects nonResourceRules:[NonResourcePolicyRule] resourceRules:[ResourcePolicyRule] subjects:[flowcontrol.Subject]
PortStatus error,protocol:string port:int32
PortworxVolumeSource fsType,volumeID:string readOnly:bool
PreferredSchedulingTerm preference:NodeSelectorTerm weight:int32
PriorityLevelConfiguration apiVersion,kind:string metadata:ObjectMeta spec:PriorityLevelConfigurationSpec status:PriorityLevelConfigurationStatus
PriorityLevelConfigurationCondition lastTransitionTime:time message,reason,status,type:string
PriorityLevelConfigurationReference name:string
PriorityLevelConfigurationSpec exempt:ExemptPriorityLevelConfiguration limited:LimitedPriorityLevelConfiguration type:string
PriorityLevelConfigurationStatus conditions:[PriorityLevelConfigurationCondition]
Probe exec:ExecAction failureThreshold,initialDelaySeconds,periodSeconds,successThreshold,timeoutSeconds:int32 grpc:GRPCAction httpGet:HTTPGetAction tcpSocket:TCPSocketAction terminationGracePeriodSeconds:int64
ProjectedVolumeSource defaultMode:int32 sources:[VolumeProjection]
QueuingConfiguration handSize,queueLengthLimit,queues:int32
QuobyteVolumeSource group,registry,tenant,user,volume:string readOnly:bool
RBDVolumeSource fsType,image,keyring,pool,user:string monitors:[string] readOnly:bool secretRef:LocalObjectReference
ResourceClaim name,request:string
ResourceFieldSelector containerName,resource:string divisor:any
ResourceHealth health,message,resourceID:string
ResourcePolicyRule apiGroups,namespaces,resources,verbs:[string] clusterScope:bool
ResourceRequirements claims:[ResourceClaim] limits,requests:any
ResourceStatus name:string resources:[ResourceHealth]
Role apiVersion,kind:string metadata:ObjectMeta rules:[PolicyRule]
RoleBinding apiVersion,kind:string metadata:ObjectMeta roleRef:RoleRef subjects:[Subject]
RoleRef apiGroup,kind,name:string
RollingUpdateDeployment maxSurge,maxUnavailable:any
SELinuxOptions level,role,type,user:string
ScaleIOVolumeSource fsType,gateway,protectionDomain,storageMode,storagePool,system,volumeName:string readOnly,sslEnabled:bool secretRef:LocalObjectReference
SeccompProfile localhostProfile,type:string
Secret apiVersion,kind,type:string data:{bytes} immutable:bool metadata:ObjectMeta stringData:{string}
SecretEnvSource name:string optional:bool
SecretKeySelector key,name:string optional:bool
SecretProjection items:[KeyToPath] name:string optional:bool
SecretVolumeSource defaultMode:int32 items:[KeyToPath] optional:bool secretName:string
SecurityContext allowPrivilegeEscalation,privileged,readOnlyRootFilesystem,runAsNonRoot:bool appArmorProfile:AppArmorProfile capabilities:Capabilities procMount:string runAsGroup,runAsUser:int64 seLinuxOptions:SELinuxOptions seccompProfile:SeccompProfile windowsOptions:WindowsSecurityContextOptions
Service apiVersion,kind:string metadata:ObjectMeta spec:ServiceSpec status:ServiceStatus
ServiceAccount apiVersion,kind:string automountServiceAccountToken:bool imagePullSecrets:[LocalObjectReference] metadata:ObjectMeta secrets:[ObjectReference]
ServiceAccountSubject name,namespace:string
ServiceAccountTokenProjection audience,path:string expirationSeconds:int64
ServicePort appProtocol,name,protocol:string nodePort,port:int32 targetPort:any
ServiceSpec allocateLoadBalancerNodePorts,publishNotReadyAddresses:bool clusterIP,externalName,externalTrafficPolicy,internalTrafficPolicy,ipFamilyPolicy,loadBalancerClass,loadBalancerIP,sessionAffinity,trafficDistribution,type:string clusterIPs,externalIPs,ipFamilies,loadBalancerSourceRanges:[string] healthCheckNodePort:int32 ports:[ServicePort] selector:{string} sessionAffinityConfig:SessionAffinityConfig
ServiceStatus conditions:[Condition] loadBalancer:LoadBalancerStatus
SessionAffinityConfig clientIP:ClientIPConfig
SleepAction seconds:int64
StorageOSVolumeSource fsType,volumeName,volumeNamespace:string readOnly:bool secretRef:LocalObjectReference
Subject apiGroup,kind,name,namespace:string
Sysctl name,value:string
TCPSocketAction host:string port:any
Taint effect,key,value:string timeAdded:time
Toleration effect,key,operator,value:string tolerationSeconds:int64
TopologySpreadConstraint labelSelector:LabelSelector matchLabelKeys:[string] maxSkew,minDomains:int32 nodeAffinityPolicy,nodeTaintsPolicy,topologyKey,whenUnsatisfiable:string
TypedLocalObjectReference apiGroup,kind,name:string
TypedObjectReference apiGroup,kind,name,namespace:string
UserSubject name:string
Volume awsElasticBlockStore:AWSElasticBlockStoreVolumeSource azureDisk:AzureDiskVolumeSource azureFile:AzureFileVolumeSource cephfs:CephFSVolumeSource cinder:CinderVolumeSource configMap:ConfigMapVolumeSource csi:CSIVolumeSource downwardAPI:DownwardAPIVolumeSource emptyDir:EmptyDirVolumeSource ephemeral:EphemeralVolumeSource fc:FCVolumeSource flexVolume:FlexVolumeSource flocker:FlockerVolumeSource gcePersistentDisk:GCEPersistentDiskVolumeSource gitRepo:GitRepoVolumeSource glusterfs:GlusterfsVolumeSource hostPath:HostPathVolumeSource image:ImageVolumeSource iscsi:ISCSIVolumeSource name:string nfs:NFSVolumeSource persistentVolumeClaim:PersistentVolumeClaimVolumeSource photonPersistentDisk:PhotonPersistentDiskVolumeSource portworxVolume:PortworxVolumeSource projected:ProjectedVolumeSource quobyte:QuobyteVolumeSource rbd:RBDVolumeSource scaleIO:ScaleIOVolumeSource secret:SecretVolumeSource storageos:StorageOSVolumeSource vsphereVolume:VsphereVirtualDiskVolumeSource
VolumeDevice devicePath,name:string
VolumeMount mountPath,mountPropagation,name,recursiveReadOnly,subPath,subPathExpr:string readOnly:bool
VolumeMountStatus mountPath,name,recursiveReadOnly:string readOnly:bool volumeStatus:VolumeStatus
VolumeProjection clusterTrustBundle:ClusterTrustBundleProjection configMap:ConfigMapProjection downwardAPI:DownwardAPIProjection podCertificate:PodCertificateProjection secret:SecretProjection serviceAccountToken:ServiceAccountTokenProjection
VolumeResourceRequirements limits,requests:any
VolumeStatus image:ImageVolumeStatus
VsphereVirtualDiskVolumeSource fsType,storagePolicyID,storagePolicyName,volumePath:string
WeightedPodAffinityTerm podAffinityTerm:PodAffinityTerm weight:int32
WindowsSecurityContextOptions gmsaCredentialSpec,gmsaCredentialSpecName,runAsUserName:string hostProcess:bool
flowcontrol.Subject group:GroupSubject kind:string serviceAccount:ServiceAccountSubject user:UserSubject
`;

const lines = new Map(
  table
    .trim()
    .split('\n')
    .map((line) => [line.slice(0, line.indexOf(' ')), line.slice(line.indexOf(' ') + 1)]),
);
const structs = new Map<string, Struct>();
const plain = ['string', 'int32', 'int64', 'bool', 'time', 'bytes', 'any'] as const;

/** The type of a kind, such as `Pod`, or of a part of one. Throws a `TypeError` on one that it does not know. */
export function structOf(name: string): Struct {
  const known = structs.get(name);
  if (known !== undefined) return known;
  const line = lines.get(name);
  if (line === undefined) throw new TypeError(`there is no type ${name}`);
  const fields: Record<string, Shape> = {};
  const struct: Struct = { struct: name.split('.').at(-1) ?? '', fields };
  // Kept before it is complete: a type may hold itself.
  structs.set(name, struct);
  for (const group of line.split(' ')) {
    const [names = '', held = ''] = group.split(':');
    for (const field of names.split(',')) fields[field] = shapeOf(held);
  }
  return struct;
}

function shapeOf(held: string): Shape {
  if (held.startsWith('[')) return { list: shapeOf(held.slice(1, -1)) };
  if (held.startsWith('{')) return { map: shapeOf(held.slice(1, -1)) };
  return plain.find((one) => one === held) ?? structOf(held);
}
