// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "Classify",
    platforms: [.macOS(.v14)],
    dependencies: [
        .package(url: "https://github.com/ml-explore/mlx-swift", from: "0.30.0")
    ],
    targets: [
        .executableTarget(
            name: "Classify", dependencies: [.product(name: "MLX", package: "mlx-swift")])
    ]
)
