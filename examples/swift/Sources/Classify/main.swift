// What an exported classifier says of images: no Python, nothing but MLX.
//
//   natten-zoo export nat_mini -o nat_mini.mlxfn --for metal --with-preprocessing
//   swift run Classify nat_mini.mlxfn IMAGE...
//
// For each image it prints the best class and its probability.

import CoreGraphics
import Foundation
import ImageIO
import MLX

/// What of the JSON beside the function matters here.
struct Facts: Decodable {
    struct Input: Decodable {
        let dtype: String
        let shapes: [[Int]]  // [batch, height, width, channels]
    }

    let inputs: [Input]
    let classes: [String]
}

struct Failure: Error, CustomStringConvertible {
    let description: String
}

/// Pixels [1, height, width, channels], 0..255, of the middle of an image.
func readImage(_ path: String, height: Int, width: Int, channels: Int) throws -> MLXArray {
    let url = URL(fileURLWithPath: path) as CFURL
    guard let source = CGImageSourceCreateWithURL(url, nil),
        let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
    else { throw Failure(description: "\(path) is no image.") }
    let step = channels == 1 ? 1 : 4  // color has a fourth byte that is not used
    let space = channels == 1 ? CGColorSpaceCreateDeviceGray() : CGColorSpace(name: CGColorSpace.sRGB)!
    let alpha: CGImageAlphaInfo = channels == 1 ? .none : .noneSkipLast
    guard
        let context = CGContext(
            data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * step,
            space: space, bitmapInfo: alpha.rawValue)
    else { throw Failure(description: "no memory for \(path).") }
    let scale = max(Double(width) / Double(image.width), Double(height) / Double(image.height))
    let size = CGSize(width: Double(image.width) * scale, height: Double(image.height) * scale)
    let corner = CGPoint(
        x: (Double(width) - size.width) / 2, y: (Double(height) - size.height) / 2)
    context.interpolationQuality = .high
    context.draw(image, in: CGRect(origin: corner, size: size))
    let bytes = context.data!.assumingMemoryBound(to: UInt8.self)
    var pixels: [UInt8] = []
    for pixel in 0..<(height * width) {
        for channel in 0..<channels { pixels.append(bytes[pixel * step + channel]) }
    }
    return MLXArray(pixels, [1, height, width, channels])
}

func run(_ arguments: [String]) throws {
    guard arguments.count > 1 else {
        throw Failure(description: "usage: Classify FUNCTION.mlxfn IMAGE...")
    }
    let file = URL(fileURLWithPath: arguments[0])
    let json = file.deletingPathExtension().appendingPathExtension("json")
    let facts = try JSONDecoder().decode(Facts.self, from: Data(contentsOf: json))
    guard let input = facts.inputs.first, let shape = input.shapes.first(where: { $0[0] == 1 }),
        input.dtype == "uint8"
    else { throw Failure(description: "export with --batch 1 --with-preprocessing.") }
    let function = try importFunction(from: file)
    for path in arguments.dropFirst() {
        let image = try readImage(path, height: shape[1], width: shape[2], channels: shape[3])
        let probabilities = softmax(try function(image)[0], axis: -1)
        let best = argMax(probabilities, axis: -1).item(Int.self)
        print("\(path)\t\(facts.classes[best])\t\(probabilities.max().item(Float.self))")
    }
}

do {
    try run(Array(CommandLine.arguments.dropFirst()))
} catch {
    FileHandle.standardError.write(Data("Classify: \(error)\n".utf8))
    exit(1)
}
